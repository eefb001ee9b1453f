"""Web servers, for reading."""

import re
from collections.abc import Iterable
from glob import has_magic
from typing import Any
from urllib.parse import unquote

import fsspec
from fsspec.utils import glob_translate

from diffmm_dist.stores.store import Store


class HttpStore(Store):
    """A web server; its folders can be listed where it shows them as pages of links."""

    def options(self) -> dict[str, Any]:
        """Return the client's arguments: proxies as the environment says, files as they are, not compressed."""
        given = fsspec.config.conf.get("http", {}).get("client_kwargs", {})
        as_it_is = {"Accept-Encoding": "identity"} | given.get("headers", {})
        return {"encoded": False, "client_kwargs": {"trust_env": True, **given, "headers": as_it_is}}

    def exists(self, path: str) -> bool:
        """Return whether the server gives it; a refusal is an error."""
        return any(self.file_system().exists(place, strict=True) for place in (path, f"{path}/"))

    def is_folder(self, path: str) -> bool:
        """Return whether the server shows a page with links there."""
        return super().is_folder(f"{path}/")

    def children(self, path: str) -> list[str]:
        """Return what a page links to inside its folder."""
        return [place.rstrip("/") for place in self._linked(path)]

    def find(self, path: str) -> list[str]:
        """Return all files that pages link to, from page to page."""
        files: list[str] = []
        folders = [path] if self.is_folder(path) else []
        while folders:
            for place in self._linked(folders.pop()):
                if place.endswith("/"):
                    folders.append(place.rstrip("/"))
                else:
                    files.append(place)
        return files

    def versions(self, path: str) -> dict[str, str]:
        """Return all files that pages link to; of their versions pages say nothing."""
        return dict.fromkeys(self.find(path), "")

    def _linked(self, folder: str) -> list[str]:
        """Return the places inside a folder that its page links to; those of folders end with a slash."""
        links = self.file_system().ls(f"{folder}/", detail=False)
        # Other links sort and filter what is shown, or lead elsewhere.
        names = [unquote(link).replace("/./", "/") for link in links if not {"?", "#"} & set(link)]
        inside = re.compile(re.escape(f"{folder}/") + "[^/]+/?")
        return [name for name in names if inside.fullmatch(name) and name.rstrip("/")[-3:] != "/.."]

    def glob(self, pattern: str) -> list[str]:
        """Return the files that match a pattern, as names and not as they are written in links."""
        if not has_magic(pattern):
            return [pattern] if self.exists(pattern) else []
        root = re.split(r"[*?\[]", pattern, maxsplit=1)[0].rpartition("/")[0]
        matches = re.compile(glob_translate(pattern)).match
        return [place for place in _with_folders(self.find(root), root) if matches(place)]


def _with_folders(files: Iterable[str], root: str) -> set[str]:
    """Return files and all folders that lead to them from a root."""
    found = set()
    for file in files:
        while len(file) > len(root):
            found.add(file)
            file = file.rpartition("/")[0]
    return found
