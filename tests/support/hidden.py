"""Packages that are not installed: imports of them fail, and nothing knows their version."""

import json
import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

from tests.support.builders import ROOT

_SITE = """
import importlib.metadata
import sys

HIDDEN = {names!r}
sys.modules.update(dict.fromkeys(HIDDEN))
found = importlib.metadata.Distribution.from_name


def from_name(name):
    if name.replace("-", "_").lower() in HIDDEN:
        raise importlib.metadata.PackageNotFoundError(name)
    return found(name)


importlib.metadata.Distribution.from_name = staticmethod(from_name)
"""


def without(folder, *names):
    """The environment of a process, and of those that it starts, in which these packages are missing."""
    (Path(folder) / "sitecustomize.py").write_text(_SITE.format(names=names))
    return {"PYTHONPATH": str(folder)}


# Has imported the program once, and forks for each line: a command in a folder, and the file for its status.
_SERVER = """
import json, os, sys, traceback
from tests.support import preloaded

for line in sys.stdin:
    words, folder, files = json.loads(line)
    pid = os.fork()
    if pid == 0:
        for stream, file in enumerate(files, start=1):
            os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
        os.chdir(folder)
        sys.argv = ["launch.py", *words]
        from diffmm_dist import cli
        status = 0
        try:
            cli.main()
        except SystemExit as end:
            status = end.code or 0
        except BaseException:
            traceback.print_exc()
            status = 1
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


class Program:
    """The program where packages are missing; its imports are paid for once."""

    def __init__(self, server, folder):
        self._server, self._folder = server, folder

    def launch(self, *words, check=True):
        """Run a command to its end; return how it ended and what it printed."""
        files = [str(self._folder / name) for name in ("out.log", "err.log")]
        self._server.stdin.write(json.dumps([list(map(str, words)), str(self._folder), files]) + "\n")
        self._server.stdin.flush()
        status = int(self._server.stdout.readline())
        done = subprocess.CompletedProcess(words, status, *(Path(file).read_text() for file in files))
        assert done.returncode == 0 or not check, done.stderr
        return done


@contextmanager
def program_without(folder, *names):
    """The program, in a folder, where these packages are missing."""
    env = {**os.environ, **without(folder, *names)}
    env["PYTHONPATH"] += f"{os.pathsep}{ROOT}"
    command = [sys.executable, "-c", _SERVER]
    with subprocess.Popen(command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdin is not None
        yield Program(server, Path(folder))
        server.stdin.close()
