"""What is found out before Ray starts."""

import socket

import pytest

from diffmm_dist.serve import server
from tests.unit.serve.test_watch import write_bundle


@pytest.fixture
def place(tmp_path, monkeypatch):
    def no_ray():
        raise AssertionError("Ray would be started")

    monkeypatch.setattr(server, "ray_cluster", no_ray)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    write_bundle(tmp_path / "b")
    return tmp_path / "b"


def test_a_wrong_place_is_a_sentence(place, run_cli):
    for where, text in ((place.with_name("none"), "is not a complete bundle"), ("memory://b", "memory of one process")):
        status, _, error = run_cli("serve", where)
        assert status == 1
        assert text in error
        assert error.count("\n") == 1
    items = place / "items.arrow"
    items.write_bytes(items.read_bytes()[:-200] + b"x" * 200)
    assert "items.arrow" in run_cli("serve", place)[2]


def test_a_taken_port_is_a_sentence(place, run_cli):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"port {port} of 127.0.0.1 is taken; choose another one" in run_cli("serve", place, "--port", port)[2]


def test_what_is_missing_is_a_sentence(place, run_cli, monkeypatch):
    monkeypatch.setattr(server, "_NEEDED", ("no_such_package",))
    assert "needs no_such_package; install it by: pip install 'diffmm-dist[serve]'" in run_cli("serve", place)[2]


def test_a_cluster_of_somebody_else_is_not_joined(place, run_cli, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert "RAY_ADDRESS is set" in run_cli("serve", place)[2]


def test_others_than_this_machine_are_a_note(place, run_cli):
    assert "can ask" in run_cli("serve", place, "--host", "192.0.2.1")[2]
    assert "can ask" not in run_cli("serve", place.with_name("none"))[2]
    assert [server.is_loopback(host) for host in ("127.0.0.1", "::1", "localhost", "0.0.0.0")] == [True] * 3 + [False]
