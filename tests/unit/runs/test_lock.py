import json
import os

import pytest

from diffmm_dist.errors import TakenOverError, UserError
from diffmm_dist.runs.lock import FileLock


def file_lock(folder):
    return FileLock(folder / "lock")


def take(lock, patience_s=0.0, after=0):
    lock.acquire("the run", patience_s=patience_s, after=after)
    return lock


def test_one_at_a_time_and_the_refusal_says_who(tmp_path):
    first = take(file_lock(tmp_path))
    with pytest.raises(UserError, match=rf"another process is training in the run: .+ \(process {os.getpid()}\)"):
        take(file_lock(tmp_path))
    first.release()
    second = take(file_lock(tmp_path))
    second.release()
    second.release()  # nothing to do
    take(second).release()


def test_every_holder_has_a_higher_number(tmp_path):
    numbers = []
    for after in (0, 0, 7, 0):
        lock = take(file_lock(tmp_path), after=after)
        numbers.append(lock.writer)
        lock.release()
    assert numbers == [1, 2, 8, 9]


def test_the_lock_file_of_an_earlier_version_is_empty(tmp_path):
    (tmp_path / "lock").write_text("")
    lock = take(file_lock(tmp_path))
    assert lock.writer == 1
    lock.release()


@pytest.mark.parametrize("text", ["nonsense", "{}", '{"owner": "x", "host": "\\u001b[31m", "process": 1, "writer": 1}'])
def test_a_damaged_lock_is_named(tmp_path, text):
    (tmp_path / "lock").write_text(text)
    with pytest.raises(UserError, match="lock is damaged; remove it if no process is training there"):
        take(file_lock(tmp_path))


def replaced(path):
    path.unlink()
    take(FileLock(path))


def rewritten(path):
    path.write_text(json.dumps({"owner": "another", "host": "elsewhere", "process": 3, "writer": 9}))


@pytest.mark.parametrize("change", [replaced, rewritten])
def test_a_holder_whose_file_is_anothers_finds_out(tmp_path, change):
    """The file was removed, or the server of a network disk forgot the lock: the system still says that it is held."""
    first = take(file_lock(tmp_path))
    first.check()
    change(tmp_path / "lock")
    with pytest.raises(TakenOverError, match=r"was taken over by .* \(process \d+\), its writer \d"):
        first.check()


def test_a_holder_whose_file_was_removed_finds_out(tmp_path):
    first = take(file_lock(tmp_path))
    (tmp_path / "lock").unlink()
    with pytest.raises(TakenOverError, match="has lost its lock .*lock, which somebody has removed"):
        first.check()


@pytest.mark.parametrize("kind", ["link", "dangling link", "device", "pipe", "folder"])
def test_a_lock_that_is_no_file_is_refused_and_written_to_by_nobody(tmp_path, kind):
    victim = tmp_path / "victim"
    make = {
        "link": lambda path: (victim.write_text("mine"), path.symlink_to(victim)),
        "dangling link": lambda path: path.symlink_to(victim),
        "device": lambda path: path.symlink_to("/dev/zero"),
        "pipe": os.mkfifo,
        "folder": os.mkdir,
    }[kind]
    make(tmp_path / "lock")
    with pytest.raises(
        (UserError, IsADirectoryError), match="lock is (a link|no regular file); remove it|Is a directory"
    ):
        take(file_lock(tmp_path))
    assert victim.exists() == (kind == "link")
    assert kind != "link" or victim.read_text() == "mine"


def test_a_lock_larger_than_any_is_refused(tmp_path):
    with (tmp_path / "lock").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(UserError, match="lock is larger than 4 KiB"):
        take(file_lock(tmp_path))
