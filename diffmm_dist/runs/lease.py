"""The lock of a run folder on a store, which has no locks: a file that its holder renews, by conditional writes alone.

No clock of another machine is ever read. Whoever waits takes the lease when it has seen the object unchanged for the
lease's length by its own clock, and writes under the condition that it still is unchanged: of two who try, one
succeeds. A holder renews under the same condition, so one that was stopped or cut off for too long finds out from the
store.
"""

import threading
import time
import uuid
from collections.abc import Callable
from typing import Annotated, Protocol

from pydantic import Field

from diffmm_dist import storage
from diffmm_dist.errors import TakenOverError, UserError, one_line
from diffmm_dist.monitoring.log import logger
from diffmm_dist.runs.lock import Holder, RunLock, this_process, who
from diffmm_dist.stores import access

LEASE_S = 30.0
_RENEWALS_PER_LEASE = 6
_SETTLE_S = 2.0  # for another's write that began before this one's, where the store does not honour conditions


class Lease(Holder):
    """What the object holds: whose it is, and what makes each of its versions another one.

    Attributes:
        lease_s: seconds without renewal after which others may take it; a length, and no time of any clock.
        renewal: how often the holder has renewed it.
        released: whether the holder has left.
    """

    lease_s: Annotated[float, Field(gt=0, le=86_400)]
    renewal: int
    released: bool


class LeaseObject(Protocol):
    """Where a lease is kept."""

    @property
    def settle_s(self) -> float:
        """Seconds after which a writer must look whether it was overwritten, 0 where it cannot be."""

    def version(self) -> str | None:
        """Return the tag of what is there, None for nothing."""

    def read(self) -> Lease | None:
        """Return what is there, which may be newer than ``version`` said before."""

    def write(self, lease: Lease, *, tag: str | None) -> str | None:
        """Write if the tag is still that of what is there; return the new one, or None where nothing was written."""


class StoredLease:
    """A lease in a file of a store; at its first use it finds out whether the store honours conditions.

    Args:
        uri: its address.
    """

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self._honours: bool | None = None

    @property
    def _conditional(self) -> bool:
        if self._honours is None:
            self._honours = access.honours_conditions(f"{self._uri}.probe-{uuid.uuid4().hex[:8]}")
            if not self._honours:
                logger.warning(
                    "the store of %s does not honour conditional writes, so it is not guaranteed that one process "
                    "alone trains in this run: do not start two at the same time",
                    self._uri,
                )
        return self._honours

    @property
    def settle_s(self) -> float:
        """Seconds to wait after taking it."""
        return 0.0 if self._conditional else _SETTLE_S

    def version(self) -> str | None:
        """Return the file's tag."""
        return access.version(self._uri)

    def read(self) -> Lease | None:
        """Read the file."""
        if not storage.exists(self._uri):
            return None
        lease: Lease = storage.read_record(self._uri, Lease, remedy="remove it if no process is training there")
        return lease

    def write(self, lease: Lease, *, tag: str | None) -> str | None:
        """Write the file if it has not changed; without conditions that is looked at a moment before."""
        data = storage.json_bytes(lease)
        if self._conditional:
            return access.put_if(self._uri, data, version=tag)
        if self.version() != tag:
            return None
        storage.write_bytes(self._uri, data)
        return self.version()


class LeaseLock(RunLock):
    """A lease: whoever holds it renews it, and whoever sees it unchanged for its length may take it.

    Args:
        uri: the file, for messages.
        lease_s: seconds without renewal after which others may take it; it is renewed six times as often.
        kept_in: where the lease is; by default the file on the store.
        clock: seconds that only ever grow.
    """

    def __init__(
        self,
        uri: str,
        *,
        lease_s: float = LEASE_S,
        kept_in: LeaseObject | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(uri)
        self._object: LeaseObject = kept_in or StoredLease(uri)
        self._lease_s = lease_s
        self._clock = clock
        self._seen: tuple[str, float] | None = None  # another's version, and when this process saw it first
        self._alive: Lease | None = None  # a holder that has renewed while this process watched
        self._lease: Lease | None = None
        self._tag = ""
        self._lost: TakenOverError | None = None
        self._one_request = threading.Lock()
        self._released = threading.Event()
        self._renewal: threading.Thread | None = None

    def _try(self, after: int) -> bool:
        asked = self._clock()
        tag = self._object.version()
        found = None if tag is None else self._object.read()
        if (tag is None) != (found is None) or (found and tag and not self._is_free(found, tag, asked)):
            return False
        writer = max(found["writer"] if found else 0, after) + 1
        holder = this_process(uuid.uuid4().hex, writer=writer)
        lease = Lease(**holder, lease_s=self._lease_s, renewal=0, released=False)
        written = self._object.write(lease, tag=tag)
        if self._object.settle_s:
            time.sleep(self._object.settle_s)
        written = self._version_if_own(lease) if written is None or self._object.settle_s else written
        if written is None:
            return False
        self._begin(lease, written)
        return True

    def _is_free(self, lease: Lease, tag: str, asked: float) -> bool:
        """Return whether a lease may be taken: its holder has left, or did not renew it while this process watched."""
        if lease["released"]:
            return True
        if self._seen is None or self._seen[0] != tag:
            self._alive = None if self._seen is None else lease
            self._seen = tag, self._clock()
        return asked - self._seen[1] > lease["lease_s"]

    def _busy(self) -> str | None:
        return None if self._alive is None else who(self._alive)

    def _begin(self, lease: Lease, tag: str) -> None:
        self.writer = lease["writer"]
        self._lease, self._tag, self._lost = lease, tag, None
        self._seen = self._alive = None
        self._released.clear()
        self._renewal = threading.Thread(target=self._keep_renewing, daemon=True)
        self._renewal.start()

    def _version_if_own(self, lease: Lease) -> str | None:
        """Return the object's tag if it holds this lease: the answer to a write that succeeded may have got lost."""
        tag = self._object.version()
        found = self._object.read()
        return tag if found is not None and found["owner"] == lease["owner"] else None

    def _keep_renewing(self) -> None:
        while not self._released.wait(self._lease_s / _RENEWALS_PER_LEASE) and self._lost is None:
            try:
                self._renew()
            except Exception as error:  # the storage may come back; the run fails by itself if it does not
                logger.warning("the lock could not be renewed: %s", one_line(error))

    def _renew(self, *, released: bool = False) -> None:
        """Write the next version of the lease, or find out that it is lost."""
        with self._one_request:
            if self._lost is not None or self._lease is None:
                return
            lease = self._lease.copy()
            lease["renewal"], lease["released"] = lease["renewal"] + 1, released
            while (tag := self._object.write(lease, tag=self._tag)) is None:
                own = self._version_if_own(lease)
                if own is None:
                    self._lost = self._taken_over(self._object.read())
                    return
                self._tag = own  # an earlier request has reached the store though its answer was lost
            self._lease, self._tag = lease, tag

    def check(self) -> None:
        """Renew the lease now."""
        self._renew()
        if self._lost is not None:
            raise self._lost

    def release(self) -> None:
        """Stop renewing and mark the lease as released; it stays, since it counts the writers."""
        if self._renewal is None:
            return
        self._released.set()
        self._renewal.join()
        self._renewal = None
        try:
            self._renew(released=True)
        except UserError as error:
            logger.warning("the lock could not be released and runs out by itself: %s", one_line(error))
        self._lease = None
