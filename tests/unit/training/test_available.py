import pytest
import torch

from diffmm_dist.training.available import available_memory

CPU = torch.device("cpu")
GIB = 2**30


def machine(root, *, free_gib=16, version=2, group="/job"):
    """Write a machine's memory and where its control groups are."""
    files = {"proc/meminfo": f"MemTotal: 99 kB\nMemAvailable: {free_gib * 2**20} kB\n"}
    if version == 2:
        files["proc/self/cgroup"] = f"0::{group}\n"
        files["proc/self/mountinfo"] = "30 23 0:26 / /cg rw - cgroup2 cgroup2 rw\n"
    else:
        files["proc/self/cgroup"] = f"4:memory:{group}\n0::/\n"
        files["proc/self/mountinfo"] = "35 31 0:32 / /cg rw - cgroup cgroup rw,memory\n"
    for path, text in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)


def limited(folder, *, limit, used, version=2, cache=0):
    names = ("memory.max", "memory.current") if version == 2 else ("memory.limit_in_bytes", "memory.usage_in_bytes")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / names[0]).write_text(f"{limit}\n")
    (folder / names[1]).write_text(f"{used}\n")
    prefix = "" if version == 2 else "total_"
    (folder / "memory.stat").write_text(f"active_file 1\n{prefix}inactive_file {cache}\n{prefix}active_file 0\n")


def test_without_limits_it_is_what_the_kernel_says(tmp_path):
    machine(tmp_path, free_gib=7)
    limited(tmp_path / "cg/job", limit="max", used=5)
    assert available_memory(CPU, root=tmp_path) == 7 * GIB


@pytest.mark.parametrize("version", [1, 2])
def test_the_own_groups_limit_less_what_is_used_in_it_holds(tmp_path, version):
    machine(tmp_path, version=version)
    limited(tmp_path / "cg/job", limit=4 * GIB, used=3 * GIB, version=version)
    assert available_memory(CPU, root=tmp_path) == pytest.approx(1 * GIB, abs=10)
    limited(tmp_path / "cg/job", limit=4 * GIB, used=3 * GIB, version=version, cache=2 * GIB)
    assert available_memory(CPU, root=tmp_path) == pytest.approx(3 * GIB, abs=10)


@pytest.mark.parametrize("version", [1, 2])
def test_the_limits_of_groups_around_it_hold_too(tmp_path, version):
    machine(tmp_path, version=version, group="/outer/job")
    limited(tmp_path / "cg/outer/job", limit=8 * GIB, used=GIB, version=version)
    limited(tmp_path / "cg/outer", limit=6 * GIB, used=5 * GIB, version=version)
    assert available_memory(CPU, root=tmp_path) == pytest.approx(1 * GIB, abs=10)


def test_version_1_writes_no_limit_as_a_very_large_one(tmp_path):
    machine(tmp_path, version=1)
    limited(tmp_path / "cg/job", limit=9223372036854771712, used=3 * GIB, version=1)
    assert available_memory(CPU, root=tmp_path) == 16 * GIB


def test_a_group_that_uses_more_than_its_limit_has_nothing_left(tmp_path):
    machine(tmp_path)
    limited(tmp_path / "cg/job", limit=GIB, used=2 * GIB)
    assert available_memory(CPU, root=tmp_path) == 0


def test_of_this_machine_it_is_a_sensible_number():
    assert 1 << 26 < available_memory(CPU) < 1 << 50
