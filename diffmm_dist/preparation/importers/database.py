"""The temporary database of an import, DuckDB, which spills to disk and which a signal ends at once."""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any, TypeVar

import duckdb
import pyarrow as pa

from diffmm_dist.cores import usable_cores
from diffmm_dist.data.schema import ROWS_PER_BATCH
from diffmm_dist.errors import UserError, one_line
from diffmm_dist.interrupts import result_of
from diffmm_dist.preparation.importers.times import quoted

_AGAIN_S = 0.1
# What DuckDB raises where the disk or the memory ends; after a failed write to its file, FatalException of every query.
_NO_ROOM = (duckdb.IOException, duckdb.OutOfMemoryException, duckdb.FatalException)
Result = TypeVar("Result")


def check_timestamp_format(text: str) -> None:
    """Raise a ``UserError`` if a format for times is none."""
    try:
        with duckdb.connect() as database:
            database.execute(f"select try_strptime('', {quoted(text)})")
    except duckdb.Error as error:
        reason = one_line(error).rsplit(": ", 1)[-1]
        raise UserError(f"--timestamp-format {text} has an unknown part {reason}; write it as in %d.%m.%Y") from error


class Database:
    """A database in a file; every query ends when an exception, such as that of a signal, reaches the caller.

    DuckDB looks for signals by itself, but with several threads it often goes on after it has found one. So queries run
    in a thread of their own, while the caller's waits for it and interrupts it, more than once if need be.

    Args:
        folder: for the file and what does not fit in memory; removed by whoever made it.
        memory_gib: what the database may hold in memory.

    Raises:
        UserError: by every query, when the folder's disk is full.
    """

    def __init__(self, folder: str, *, memory_gib: float) -> None:
        self._folder = folder
        self._thread = ThreadPoolExecutor(max_workers=1)
        self._connection = duckdb.connect(
            os.path.join(folder, "interactions.duckdb"),
            config={
                "memory_limit": f"{int(memory_gib * 1024)}MiB",
                "threads": usable_cores().share()[0],
                "temp_directory": os.path.join(folder, "spilled"),
                "preserve_insertion_order": "false",
                "autoinstall_known_extensions": "false",
                "autoload_known_extensions": "false",
            },
        )

    def close(self) -> None:
        """Close the file."""
        self._thread.shutdown()
        self._connection.close()

    def run(self, query: str) -> list[Any]:
        """Run a query to its end and return its rows."""
        return self._wait_for(lambda: self._connection.execute(query).fetchall())

    def table(self, query: str) -> pa.Table:
        """Return what a query finds."""
        return self._wait_for(lambda: self._connection.sql(query).to_arrow_table())

    def batches(self, query: str) -> Iterator[pa.RecordBatch]:
        """Yield what a query finds, in pieces; no other query may run meanwhile."""
        reader: Any = self._wait_for(lambda: self._connection.sql(query).to_arrow_reader(ROWS_PER_BATCH))

        def following() -> pa.RecordBatch | None:
            return next(reader, None)

        while (batch := self._wait_for(following)) is not None:
            yield batch

    def append(self, name: str, rows: pa.Table, *, create: bool) -> None:
        """Add rows to a table, or make it of them alone."""
        self._connection.register("arriving", rows)
        verb = f"create or replace table {name} as" if create else f"insert into {name}"
        self.run(f"{verb} select * from arriving")
        self._connection.unregister("arriving")

    def _wait_for(self, work: Callable[[], Result]) -> Result:
        running = self._thread.submit(work)
        try:
            return result_of(running)
        except _NO_ROOM as error:
            raise UserError(
                f"the temporary database of this import, in {os.path.dirname(self._folder)}, ran out of room: "
                f"{_first_line(error)}; make room there, or set TMPDIR to a folder of a larger disk"
            ) from error
        except BaseException:
            while not running.done():
                self._connection.interrupt()
                wait([running], timeout=_AGAIN_S)
            raise


def _first_line(error: Exception) -> str:
    """Return the first line of DuckDB's text, without the kind of error; what follows are settings of its own."""
    return str(error).splitlines()[0].split(": ", 1)[-1].rstrip(".")
