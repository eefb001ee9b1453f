"""Hooks of MkDocs: pages of the project outside docs/ belong to the site too, and links between all of them hold.

A file has one name in the site, its path in the project, but that docs/ is the root and README.md the front page. So
what links to ../cluster/README.md on GitHub finds it in the site as well, and files that pages link to, such as
configurations, come along.
"""

import html
import posixpath
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
OUTSIDE = ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "cluster/README.md", "diffmm_dist/models/*/README.md")
FENCED = re.compile(r"(^ *```.*?^ *```$)", re.M | re.S)
LINK = re.compile(r"(\]\()([^)#:\s]+)((?:#[^)\s]*)?\))")
NEEDS = re.compile(r"^<!-- needs: (.+?) -->$", re.M)


def on_config(config: Any) -> Any:
    """Put the files in the place of each pattern in the navigation."""
    config.nav = list(_expanded(config.nav))
    return config


def _expanded(entries: Iterable[Any]) -> Iterator[Any]:
    for entry in entries:
        if isinstance(entry, str):
            yield from _matches(entry) if "*" in entry else [entry]
            continue
        ((title, inside),) = entry.items()
        if isinstance(inside, list):
            yield {title: list(_expanded(inside))}
        else:
            yield {title: _matches(inside) if "*" in inside else inside}


def _matches(pattern: str) -> list[str]:
    """Return the pages that a pattern names, a README first."""
    places = [place for base in (ROOT / "docs", ROOT) for place in base.glob(pattern)]
    return sorted(
        (in_site(of_project(place)) for place in places), key=lambda name: (not name.endswith("/README.md"), name)
    )


def on_files(files: Any, config: Any) -> Any:
    """Add the pages outside docs/, and the files that pages link to."""
    from mkdocs.structure.files import File

    pages = [of_project(place) for pattern in OUTSIDE for place in sorted(ROOT.glob(pattern))]
    known = {*pages, *(f"docs/{file.src_uri}" for file in files)}
    linked = {target for page in known if page.endswith(".md") for target in _targets(page)}
    for name in (*pages, *sorted(name for name in linked - known if (ROOT / name).is_file())):
        files.append(File.generated(config, in_site(name), abs_src_path=str(ROOT / name)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Lead links to where their files are in the site, and show what a block of commands needs."""
    place = page.file.abs_src_path
    if page.is_homepage:
        page.meta["hide"] = ["navigation"]  # its section has no other page
    return outside_of_code(NEEDS.sub(_shown, markdown), lambda text: _led(text, of_project(Path(place))))


def _shown(mark: re.Match[str]) -> str:
    return f'<p class="needs">needs: {html.escape(mark[1])}</p>\n'


def of_project(place: Path) -> str:
    """Return a file's path in the project."""
    return place.resolve().relative_to(ROOT).as_posix()


def in_site(name: str) -> str:
    """Return what a file of the project is called in the site."""
    return "index.md" if name == "README.md" else name.removeprefix("docs/")


def _targets(page: str) -> set[str]:
    """Return the files of the project that a page links to."""
    text = FENCED.sub("", (ROOT / page).read_text(encoding="utf-8"))
    return {_resolved(page, link[2]) for link in LINK.finditer(text)}


def _resolved(page: str, link: str) -> str:
    return posixpath.normpath(posixpath.join(posixpath.dirname(page), link))


def _led(text: str, page: str) -> str:
    folder = posixpath.dirname(in_site(page)) or "."
    return LINK.sub(lambda link: link[1] + posixpath.relpath(in_site(_resolved(page, link[2])), folder) + link[3], text)


def outside_of_code(text: str, change: Callable[[str], str]) -> str:
    """Return a page with everything changed but its blocks of code."""
    return "".join(part if FENCED.fullmatch(part) else change(part) for part in FENCED.split(text))
