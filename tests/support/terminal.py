"""A terminal for a process, and what stands on it."""

import fcntl
import os
import pty
import re
import struct
import subprocess
import termios

_CODE = re.compile(r"\x1b\[(\??)([\d;]*)([A-Za-z])")


def run_in_terminal(command, *, columns, env=None, stdout=None):
    """Run a command to its end in a terminal; return what it has written there.

    What it writes to standard output goes there too unless it is given another place.
    """
    ours, its = pty.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    inherited = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES", "NO_COLOR")}
    process = subprocess.Popen(
        command, stdin=its, stdout=its if stdout is None else stdout, stderr=its,
        env={**inherited, "TERM": "xterm-256color", **(env or {})},
    )  # fmt: skip
    os.close(its)
    written = b""
    try:
        while piece := os.read(ours, 65536):
            written += piece
    except OSError:  # the last one who had it open has closed it
        pass
    os.close(ours)
    assert process.wait(60) == 0, written.decode()
    return written.decode()


class Screen:
    """The lines that a terminal shows.

    Attributes:
        lines: they, without blanks at their ends.
        wrapped: how often something was longer than a line.
        codes: the codes that were met, such as ``2K``.
    """

    def __init__(self, written, *, columns):
        self._rows: list[list[str]] = [[]]
        self._row, self._column, self._columns = 0, 0, columns
        self.wrapped, self.codes = 0, set()
        at = 0
        while at < len(written):
            code = _CODE.match(written, at)
            if code:
                self._obey(*code.groups())
                at = code.end()
            else:
                self._put(written[at])
                at += 1

    @property
    def lines(self):
        return ["".join(row).rstrip() for row in self._rows]

    def _obey(self, private, number, letter):
        self.codes.add(f"{private}{number}{letter}")
        if letter == "K":
            self._rows[self._row] = [] if number == "2" else self._rows[self._row][: self._column]
        elif letter == "A":
            self._row = max(0, self._row - int(number or 1))
        else:
            assert private or letter == "m", f"code {letter}"

    def _put(self, sign):
        if sign == "\r":
            self._column = 0
        elif sign == "\n":
            self._row += 1
        else:
            if self._column == self._columns:
                self.wrapped += 1
                self._row, self._column = self._row + 1, 0
            self._rows += [[] for _ in range(self._row + 1 - len(self._rows))]
            row = self._rows[self._row]
            row += [" "] * (self._column + 1 - len(row))
            row[self._column] = sign
            self._column += 1
        self._rows += [[] for _ in range(self._row + 1 - len(self._rows))]
