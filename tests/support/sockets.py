"""Who listens where, from Linux's own tables."""

import os
import socket
import struct
from pathlib import Path

_LISTENS = "0A"


def listening(processes):
    """The addresses and ports on which any of the processes listens, with the process."""
    inodes = {inode: pid for pid in processes for inode in _sockets_of(pid)}
    found = set()
    for table, family in (("tcp", socket.AF_INET), ("tcp6", socket.AF_INET6)):
        for line in Path("/proc/net", table).read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == _LISTENS and fields[9] in inodes:
                address, port = fields[1].split(":")
                found.add((_text(address, family), int(port, 16), inodes[fields[9]]))
    return found


def _sockets_of(pid):
    try:
        for handle in Path(f"/proc/{pid}/fd").iterdir():
            target = os.readlink(handle)
            if target.startswith("socket:["):
                yield target.removeprefix("socket:[").removesuffix("]")
    except OSError:  # it has ended
        return


def _text(address, family):
    words = [int(address[start : start + 8], 16) for start in range(0, len(address), 8)]
    return socket.inet_ntop(family, struct.pack(f"={len(words)}I", *words))
