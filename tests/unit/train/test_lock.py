import json
import time

import pytest

from diffmm_dist.errors import UserError
from diffmm_dist.train import lock as lock_module
from diffmm_dist.train.lock import LEASE_S, FileLock, LeaseLock


def lease(tmp_path, clock=time.time):
    return LeaseLock(str(tmp_path / "lock"), clock=clock)


def take(lock, patience_s=0.0):
    lock.acquire("the run", patience_s=patience_s)
    return lock


@pytest.mark.parametrize("make", [lease, lambda folder: FileLock(folder / "lock")])
def test_one_at_a_time(make, tmp_path):
    first = take(make(tmp_path))
    with pytest.raises(UserError, match="another process is training in the run"):
        take(make(tmp_path))
    first.release()
    second = take(make(tmp_path))
    second.release()
    second.release()  # nothing to do
    take(second).release()


def test_a_dead_holder_keeps_others_out_for_a_while_only(tmp_path):
    now = 1000.0
    (tmp_path / "lock").write_text(json.dumps({"owner": "gone", "until": now + LEASE_S}))
    with pytest.raises(UserError, match="another process"):
        take(lease(tmp_path, lambda: now + LEASE_S - 1))
    take(lease(tmp_path, lambda: now + LEASE_S + 1)).release()
    assert not (tmp_path / "lock").exists()


def test_a_lease_is_renewed_until_it_is_released(tmp_path, monkeypatch):
    monkeypatch.setattr(lock_module, "_RENEW_S", 0.01)
    now = [1000.0]
    holder = take(lease(tmp_path, lambda: now[0]))
    now[0] += 500
    deadline = time.monotonic() + 20
    while json.loads((tmp_path / "lock").read_text())["until"] < now[0]:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    holder.release()


def test_waiting_for_a_holder_that_leaves(tmp_path, monkeypatch):
    monkeypatch.setattr(lock_module, "_POLL_S", 0.01)
    (tmp_path / "lock").write_text(json.dumps({"owner": "gone", "until": time.time() + 0.3}))
    take(lease(tmp_path), patience_s=20).release()


def test_a_damaged_lease_is_named(tmp_path):
    (tmp_path / "lock").write_text("{}")
    with pytest.raises(UserError, match="lock is damaged"):
        take(lease(tmp_path))
