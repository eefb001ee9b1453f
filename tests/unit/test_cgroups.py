from pathlib import Path

from diffmm_dist.cgroups import own_groups


def write(path, text=""):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def groups(root, controller="memory"):
    return [str(folder.relative_to(root)) for folder in own_groups(controller, root=root)]


def test_version_2_from_the_own_group_to_the_top(tmp_path):
    write(tmp_path / "proc/self/cgroup", "0::/system.slice/job\n")
    write(tmp_path / "proc/self/mountinfo", "30 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n")
    top = "sys/fs/cgroup"
    assert groups(tmp_path) == [f"{top}/system.slice/job", f"{top}/system.slice", top]


def test_version_1_takes_the_tree_of_the_controller(tmp_path):
    write(tmp_path / "proc/self/cgroup", "4:memory:/outer/inner\n1:cpu,cpuacct:/other\n0::/\n")
    write(
        tmp_path / "proc/self/mountinfo",
        "35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n"
        "32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu,cpuacct\n",
    )
    top = "sys/fs/cgroup/memory"
    assert groups(tmp_path) == [f"{top}/outer/inner", f"{top}/outer", top]
    assert groups(tmp_path, "cpu") == ["sys/fs/cgroup/cpu/other", "sys/fs/cgroup/cpu"]


def test_a_container_sees_its_own_group_at_the_top_of_the_mount(tmp_path):
    write(tmp_path / "proc/self/cgroup", "4:memory:/docker/abc/job\n")
    write(tmp_path / "proc/self/mountinfo", r"35 31 0:32 /docker/abc /cg\040roup rw - cgroup cgroup rw,memory" + "\n")
    assert groups(tmp_path) == ["cg roup/job", "cg roup"]
    write(tmp_path / "proc/self/cgroup", "4:memory:/elsewhere\n")
    assert groups(tmp_path) == ["cg roup"]


def test_a_system_without_control_groups_has_none(tmp_path):
    assert groups(tmp_path) == []
    assert all(isinstance(folder, Path) for folder in own_groups("memory"))
