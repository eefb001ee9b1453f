"""Commands that build something, ended in the middle: nothing of it counts, and once more they make the same files."""

import hashlib
import signal
from pathlib import Path

import pyarrow.parquet as parquet
import pytest

from tests.support.builders import published_folder, synthetic_dataset, write_config
from tests.support.forked import forked, run
from tests.support.tables import interactions

ATTEMPTS = 30


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """What the commands read: tables, a published folder, a dataset and a finished run."""
    folder = tmp_path_factory.mktemp("sources")
    parquet.write_table(interactions(2000, 1000, 60_000), folder / "events.parquet")
    published_folder(folder / "published", num_users=600, num_items=400)
    data = synthetic_dataset(folder / "data", users=2000, items=1000, interactions=40_000)
    config = write_config(
        folder / "c.yaml", data={"path": data}, run={"path": str(folder / "run")},
        train={"epochs": 1, "batch_size": 2048},
    )  # fmt: skip
    run(folder / "log", "train", "--config", config)
    return folder


COMMANDS = {
    "prepare synthetic": lambda _: ["prepare", "synthetic", *"--users 3000 --items 2000 --interactions 60000".split()],
    "prepare tables": lambda at: ["prepare", "tables", at / "events.parquet", "--user", "who", "--item", "what"],
    "prepare published": lambda at: ["prepare", "published", at / "published"],
    "partition": lambda at: ["partition", at / "data", "--num-parts", 4],
    "export": lambda at: ["export", at / "run"],
}


def contents(folder):
    """Every file's checksum."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(Path(folder).rglob("*"))
        if path.is_file()
    }


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.timeout(600)
def test_ended_while_it_writes_and_run_again(name, sources, tmp_path):
    """SIGTERM removes what it has built; SIGKILL leaves it to the next command; what stood there stays until then."""
    out, log = tmp_path / "out", tmp_path / "log"
    command = [*COMMANDS[name](sources), "--out", out]
    run(log, *command)
    whole = contents(out)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGKILL):
        ended_while_it_writes(log, [*command, "--force"], tmp_path, number)
        assert contents(out) == whole
        left = [path.name for path in tmp_path.iterdir() if ".partial-" in path.name]
        assert number == signal.SIGKILL or not left
    run(log, *command, "--force")
    assert contents(out) == whole
    assert {path.name for path in tmp_path.iterdir()} == {"out", "log"}


def ended_while_it_writes(log, command, folder, number):
    """Send a signal as soon as there is something beside the old folder; a command that was faster is run again."""
    for _ in range(ATTEMPTS):
        with forked(log, *command) as process:
            while process.poll() is None and not any(".partial-" in path.name for path in folder.iterdir()):
                pass
            if process.poll() is None:
                process.send(number)
            status = process.wait()
            assert "Traceback" not in process.log, process.log
            if status == -signal.SIGKILL:
                return
            if status == 130:
                assert process.log.splitlines()[-1] == "interrupted; nothing is left half-written"
                return
            assert status == 0, process.log
    raise AssertionError("never fast enough")
