"""The database of an import: answers, and its end when a signal comes."""

import os
import resource
import signal
import threading

import duckdb
import numpy as np
import pyarrow as pa
import pytest

from diffmm_dist.errors import StoppedEarlyError, UserError
from diffmm_dist.launch.signals import at_once
from diffmm_dist.preparation.importers.database import Database

ENDLESS = "from range(1000000) a, range(1000000) b where (a.range * b.range) % 7 = 3"


@pytest.fixture
def database(tmp_path):
    made = Database(str(tmp_path), memory_gib=1)
    yield made
    made.close()


def test_rows_tables_and_pieces(database):
    database.append("numbers", pa.table({"n": [3, 1]}), create=True)
    database.append("numbers", pa.table({"n": [2]}), create=False)
    query = "select n from numbers order by n"
    assert database.run(query) == [(1,), (2,), (3,)]
    assert database.table(query).to_pydict() == {"n": [1, 2, 3]}
    assert [n for batch in database.batches(query) for n in batch["n"].to_pylist()] == [1, 2, 3]
    with pytest.raises(duckdb.Error):
        database.run("select nothing")
    assert database.run(query)


def test_a_disk_without_room_is_one_sentence(tmp_path):
    folder = tmp_path / "diffmm-import-1"
    folder.mkdir()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    database = Database(str(folder), memory_gib=1)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, limits[1]))
        said = f"temporary database of this import, in {tmp_path}, ran out of room: .*; make room there, or set TMPDIR"
        for _ in range(2):
            with pytest.raises(UserError, match=said):
                database.append("t", database_rows(), create=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        database.close()


def database_rows():
    return pa.table({"n": np.random.default_rng(0).random(1 << 20)})


@pytest.mark.parametrize("attempt", range(5))
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_every_kind_of_query(database, number, attempt):
    kinds = {
        "rows": lambda: database.run(f"select count(*) {ENDLESS}"),
        "table": lambda: database.table(f"select a.range {ENDLESS}"),
        "pieces": lambda: list(database.batches(f"select sum(a.range) {ENDLESS} group by b.range order by all")),
    }
    for query in kinds.values():
        timer = threading.Timer(0.1, os.kill, (os.getpid(), number))
        with pytest.raises(StoppedEarlyError, match="ended"), at_once(StoppedEarlyError("ended")):
            timer.start()
            query()
        assert database.run("select 1") == [(1,)]
