"""Clients that ask a server over HTTP one request after the other: plain sockets in one process, to leave it the cores.

Nothing is imported but the standard library, for it is a process of its own.
"""

import asyncio
import time
from collections.abc import Iterator, Sequence
from itertools import cycle
from typing import NamedTuple

_ANSWER_S = 60.0
_AGAIN_S = 0.01


class Load(NamedTuple):
    """What clients have seen.

    Attributes:
        seconds: of each request that was answered with 200.
        errors: requests that were not.
        elapsed: from the first request that counts to the last answer.
    """

    seconds: list[float]
    errors: int
    elapsed: float


def load(
    host: str, port: int, path: str, bodies: Sequence[bytes], *, clients: int, warm_s: float, for_s: float
) -> Load:
    """Ask from several connections at once, each for its next body as soon as it is answered.

    Args:
        host: of the server.
        port: likewise.
        path: to post to.
        bodies: what is asked, in turns.
        clients: connections.
        warm_s: requests that begin in these seconds do not count.
        for_s: those that begin in the seconds behind them do.
    """
    requests = [_request(host, port, path, body) for body in bodies]
    return asyncio.run(_load(_Clients(host, port, requests, clients), warm_s, for_s))


async def _load(clients: "_Clients", warm_s: float, for_s: float) -> Load:
    clients.start = time.perf_counter() + warm_s
    clients.end = clients.start + for_s
    await asyncio.gather(*map(clients.run, range(clients.count)))
    return Load(clients.seconds, clients.errors, time.perf_counter() - clients.start)


class _Clients:
    """Connections that ask in turns, until the time is over."""

    def __init__(self, host: str, port: int, requests: Sequence[bytes], count: int) -> None:
        self._place = host, port
        self._requests = requests
        self.count = count
        self.start = self.end = 0.0
        self.seconds: list[float] = []
        self.errors = 0

    async def run(self, number: int) -> None:
        """Ask through one connection, and through another one when it breaks."""
        bodies = cycle([*self._requests[number :: self.count]] or self._requests)
        while time.perf_counter() < self.end:
            try:
                await self._ask(bodies)
            except (OSError, EOFError, ValueError, asyncio.TimeoutError):
                self.errors += time.perf_counter() >= self.start
                await asyncio.sleep(_AGAIN_S)

    async def _ask(self, requests: Iterator[bytes]) -> None:
        reader, writer = await asyncio.open_connection(*self._place)
        try:
            while (begun := time.perf_counter()) < self.end:
                writer.write(next(requests))
                ok = await asyncio.wait_for(_answered(reader), _ANSWER_S)
                if begun >= self.start and ok:
                    self.seconds.append(time.perf_counter() - begun)
                self.errors += begun >= self.start and not ok
        finally:
            writer.close()


def _request(host: str, port: int, path: str, body: bytes) -> bytes:
    head = f"POST {path} HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


async def _answered(reader: asyncio.StreamReader) -> bool:
    """Read an answer and return whether it is 200."""
    head = await reader.readuntil(b"\r\n\r\n")
    lengths = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
    await reader.readexactly(int(lengths[0].partition(b":")[2]) if lengths else 0)
    return head.split(b" ", 2)[1] == b"200"
