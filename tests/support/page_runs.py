"""Running what a page shows, in the present folder: its files are written, its commands and its Python run in turn."""

import json
import os
import re
import shlex
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tests.support.pages import CODE, blocks_of, shape_of

OURS = ("python launch.py ", "diffmm-dist ")
# Trains a small model for two epochs, whatever a page trains.
QUICK = (
    "train.epochs=2", "train.batch_size=8192", "model.embedding_dim=8", "model.diffusion.denoiser_hidden_dims=[8]",
    "graph.kernel=csr", "monitoring.tensorboard=false",
)  # fmt: skip
RunCli = Callable[..., tuple[int, str, str]]


class PageRun:
    """What runs the blocks of pages that have no mark, one after the other.

    Args:
        run_cli: the fixture.
        quick: settings for every ``train`` of a model with a configuration.
        others: by the first word of a command of ours, or of another program, what runs it instead; it gets the
            command and the lines that the page shows.
    """

    def __init__(
        self,
        run_cli: RunCli,
        *,
        quick: Sequence[str] = (),
        others: dict[str, Callable[[str, list[str]], Any]] | None = None,
    ) -> None:
        self._run_cli = run_cli
        self._quick = quick
        self._others = others or {}
        self.names: dict[str, Any] = {"__name__": "__page__"}

    def page(self, page: Path) -> int:
        """Run a page; return how many of its blocks were run."""
        todo = [block for block in blocks_of(page) if not block.needs and (block.title or block.language in CODE)]
        for block in todo:
            if block.title:
                Path(block.title).write_text(block.text, encoding="utf-8")
            elif block.language == "python":
                exec(compile(block.text, str(page), "exec"), self.names)
            else:
                for command, shown in block.commands():
                    self._command(command, shown)
        return len(todo)

    def _command(self, command: str, shown: list[str]) -> None:
        start = next((start for start in OURS if command.startswith(start)), "")
        word = command.removeprefix(start).split()[0]
        if word in self._others:
            self._others[word](command, shown)
        elif start:
            self._of_ours(command, shlex.split(command.removeprefix(start)), shown)
        elif word != "make":  # those of .ci/run, which test_page_commands.py compares
            _other(command)

    def _of_ours(self, command: str, words: list[str], shown: list[str]) -> None:
        plain = "model.name=popularity" in words
        quick = [one for one in self._quick if not (plain and one.startswith("model."))] if words[0] == "train" else []
        status, out, err = self._run_cli(*words, *quick)
        assert status == 0, f"{command}: {err}"
        if shown:
            assert shape_of(out.splitlines()) == shape_of(shown), command


def _other(command: str) -> None:
    """Run a command of another program; ``python`` is the one that runs this."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    subprocess.run(["bash", "-c", command], check=True, timeout=60, env={**os.environ, "PATH": path})


def asked(command: str, address: str) -> str:
    """Return what ``curl`` of a page prints, of a server at another address than the page's."""
    words = shlex.split(command)
    url = next(word for word in words if word.startswith("http://"))
    data = words[words.index("--data") + 1].encode() if "--data" in words else None
    place = re.sub(r"^http://127\.0\.0\.1:8000", address, url)
    try:
        with urllib.request.urlopen(urllib.request.Request(place, data=data), timeout=60) as answer:
            text: str = answer.read().decode()
    except urllib.error.HTTPError as error:
        text = error.read().decode()
    json.loads(text)
    return text
