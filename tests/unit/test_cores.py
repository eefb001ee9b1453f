"""What a process may use, read from made-up trees of /proc and /sys."""

import subprocess
import sys
from contextlib import closing

import pytest

from diffmm_dist import cores
from diffmm_dist.cores import Cores, choose_threads, started_with, tell_libraries, usable_cores
from diffmm_dist.preparation.importers import database
from tests.support.builders import ROOT

V2 = "31 23 0:28 / /sys/fs/cgroup rw,relatime - cgroup2 cgroup2 rw"
V1 = (
    "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755\n"
    "32 31 0:29 {top} /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
    "33 31 0:30 {top} /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct"
)


def tree(root, groups, mounts, **files):
    """A made-up /proc and /sys; the names of the files are paths below /sys/fs/cgroup."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(groups)
    (root / "proc/self/mountinfo").write_text(mounts)
    for name, text in files.items():
        path = root / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def usable(root, word="", affinity=8, installed=8):
    return usable_cores(root=root, word=word, affinity=affinity, installed=installed)


def test_without_any_limit_it_is_the_machine(tmp_path):
    found = usable(tmp_path / "no proc at all")
    assert (found.of_machine, found.reason) == (8, "this machine has 8 cores")
    assert choose_threads(0, found, num_workers=1).line == "8 threads: this machine has 8 cores"


def test_cpu_affinity_counts(tmp_path):
    found = usable(tmp_path, affinity=3)
    assert choose_threads(0, found, num_workers=1).line == "3 threads: CPU affinity allows 3 of 8 cores"


@pytest.mark.parametrize(
    ("text", "expected"),
    [("max 100000", 8), ("200000 100000", 2), ("250000 100000", 2), ("50000 100000", 1), ("50000 10000", 5),
     ("1600000 100000", 8), ("", 8), ("max", 8), ("nonsense 100000", 8), ("0 100000", 8), ("100000 0", 8)],
)  # fmt: skip
def test_the_quota_of_a_container_counts_in_whole_cores(text, expected, tmp_path):
    tree(tmp_path, "0::/\n", V2, **{"cpu.max": text})
    assert usable(tmp_path).of_machine == expected


def test_a_quota_of_a_fraction_is_named(tmp_path):
    tree(tmp_path, "0::/\n", V2, **{"cpu.max": "250000 100000"})
    assert usable(tmp_path).reason == "the container's CPU quota is 2.5 of 8 cores"


def test_the_quotas_of_the_groups_around_count_too(tmp_path):
    """A pod's quota stands above its containers'; the least of them holds."""
    files = {"cpu.max": "max 100000", "pod/cpu.max": "300000 100000", "pod/inner/cpu.max": "700000 100000"}
    tree(tmp_path, "0::/pod/inner/leaf\n", V2, **files)
    assert usable(tmp_path).of_machine == 3


@pytest.mark.parametrize(
    ("groups", "top"),
    [("4:cpu,cpuacct:/\n3:memory:/other\n", "/"), ("4:cpu,cpuacct:/docker/ab\n", "/docker/ab"),
     ("4:cpu,cpuacct:/docker/ab\n", "/"), ("9:cpuacct:/wrong\n4:cpu:/elsewhere\n", "/docker/ab")],
    ids=["in a namespace", "the own group mounted", "a group that cannot be seen", "a group outside the mount"],
)  # fmt: skip
def test_quotas_of_version_1(groups, top, tmp_path):
    quota = {"cpu,cpuacct/cpu.cfs_quota_us": "400000", "cpu,cpuacct/cpu.cfs_period_us": "100000"}
    tree(tmp_path, groups, V1.format(top=top), **quota)
    assert usable(tmp_path).of_machine == 4


def test_version_1_without_a_quota(tmp_path):
    quota = {"cpu,cpuacct/cpu.cfs_quota_us": "-1", "cpu,cpuacct/cpu.cfs_period_us": "100000"}
    tree(tmp_path, "4:cpu,cpuacct:/\n", V1.format(top="/"), **quota)
    assert usable(tmp_path).of_machine == 8


def test_both_versions_at_once_give_the_least(tmp_path):
    mounts = V1.format(top="/") + "\n41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw"
    files = {"cpu,cpuacct/a/cpu.cfs_quota_us": "200000", "cpu,cpuacct/a/cpu.cfs_period_us": "100000"}
    tree(tmp_path, "4:cpu,cpuacct:/a\n0::/b\n", mounts, **files, **{"unified/b/cpu.max": "500000 100000"})
    assert usable(tmp_path).of_machine == 2


@pytest.mark.parametrize("groups", ["", "rubbish\n", "0::/../../x\n", ":::\n"])
@pytest.mark.parametrize("mounts", ["", "rubbish\n", "1 2 3 - cgroup2\n", " - \n", V2.replace("/sys/fs", r"/s\040s")])
def test_what_cannot_be_read_is_no_limit(groups, mounts, tmp_path):
    assert usable(tree(tmp_path, groups, mounts)).of_machine == 8


@pytest.mark.parametrize(
    ("word", "expected"),
    [("1", 1), (" 2 ", 2), ("2,1", 2), ("3 , 4,1", 3), ("007", 7), ("8", 8), ("64", 8), ("9" * 18, 8)],
)
def test_the_users_number_of_threads_counts(word, expected, tmp_path):
    found = usable(tmp_path, word=word)
    assert found.share()[0] == expected
    assert found.mistake is None
    if expected < 8:
        assert choose_threads(0, found, num_workers=1).line.endswith(f": OMP_NUM_THREADS={expected}")


@pytest.mark.parametrize("word", ["0", "-1", "all", "2;1", "1.5", "2,", ",2", "2,x", "9" * 30, "٣", "0x4"])
def test_nonsense_is_ignored_and_said(word, tmp_path):
    found = usable(tmp_path, word=word)
    assert found.share()[0] == 8
    assert found.mistake.startswith("OMP_NUM_THREADS='")
    assert found.mistake.endswith("is no number of threads and is ignored; set it to 1 or more")


@pytest.mark.parametrize("word", ["", "  "])
def test_an_empty_word_is_none(word, tmp_path):
    assert usable(tmp_path, word=word).mistake is None


@pytest.mark.parametrize(
    ("num_workers", "word", "expected"),
    [(2, "", "4 threads: this machine has 8 cores, shared by 2 workers"), (3, "", "2 threads: "),
     (20, "", "1 thread: "), (2, "3", "3 threads: OMP_NUM_THREADS=3"),
     (4, "3", "2 threads: this machine has 8 cores, shared by 4 workers")],
)  # fmt: skip
def test_workers_share_the_machine_and_each_has_the_users_number_at_most(num_workers, word, expected, tmp_path):
    assert choose_threads(0, usable(tmp_path, word=word), num_workers=num_workers).line.startswith(expected)


def test_more_threads_than_there_are_cores_for_are_obeyed_with_a_warning(tmp_path):
    found = usable(tmp_path, affinity=2)
    obeyed = choose_threads(4, found, num_workers=2)
    assert (obeyed.count, obeyed.line) == (4, "4 threads: as configured")
    assert obeyed.warning.startswith(
        "4 threads where this process may use 1 (CPU affinity allows 2 of 8 cores, shared by 2 workers): "
    )
    assert choose_threads(1, found, num_workers=2).warning is None


def test_libraries_are_told_before_they_are_loaded(monkeypatch):
    monkeypatch.setattr(cores, "_word", "")
    monkeypatch.setattr(cores, "usable_cores", lambda *, word: Cores(3, cores._granted(word), "by the test"))
    environment = {}
    tell_libraries(environment)
    assert environment == {"OMP_NUM_THREADS": "3", "GOMP_SPINCOUNT": cores.SPIN_COUNT}
    assert cores.heard() is None
    for word, told in (("2,1", "2,1"), ("64", "3"), ("all", "3")):
        environment = {"OMP_NUM_THREADS": word}
        tell_libraries(environment)
        assert environment["OMP_NUM_THREADS"] == told
        assert cores.heard() == word


@pytest.mark.parametrize("own", [{"OMP_WAIT_POLICY": "ACTIVE"}, {"GOMP_SPINCOUNT": "7"}])
def test_how_long_threads_spin_is_left_to_a_user_who_says_so(own, monkeypatch):
    monkeypatch.setattr(cores, "_word", "")
    environment = dict(own)
    tell_libraries(environment)
    assert own.items() <= environment.items()
    assert len([name for name in environment if name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")]) == 1


def test_what_a_process_was_started_with_stays_known(tmp_path):
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/environ").write_bytes(b"A=1\0OMP_NUM_THREADS=2,1\0B=\0")
    assert started_with("OMP_NUM_THREADS", root=tmp_path) == "2,1"
    assert started_with("OMP", root=tmp_path) is None
    assert started_with("OMP_NUM_THREADS", root=tmp_path / "gone") is None


def test_the_database_of_an_import_has_as_many_threads(tmp_path, monkeypatch):
    monkeypatch.setattr(database, "usable_cores", lambda: usable(tmp_path, word="3"))
    with closing(database.Database(str(tmp_path), memory_gib=1)) as made:
        assert made.run("select current_setting('threads')") == [(3,)]


PROBE = (
    "import os, sys; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))});"
    "from diffmm_dist.cores import tell_libraries, usable_cores; tell_libraries();"
    "import torch, pyarrow; from diffmm_dist.training.worker import prepare_process; before = torch.get_num_threads();"
    "line = prepare_process(0).line; print(before, torch.get_num_threads(), pyarrow.cpu_count(), line)"
)


def test_every_library_has_as_many_threads_as_may_be_used():
    """A process with an affinity of one core, as ``taskset -c 0`` gives it."""
    done = subprocess.run([sys.executable, "-c", PROBE], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("1 1 1 1 thread: ")
