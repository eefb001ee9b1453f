"""The site of the docs, built as `make site` builds it and looked at in a browser: it needs nothing from elsewhere."""

import functools
import os
import subprocess
import sys
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest

pytest.importorskip("mkdocstrings_handlers", reason="the extra docs is not installed")

from tests.support.browser import Watched, browser, needs_browser
from tests.support.builders import ROOT


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of the site; a warning fails."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, timeout=120, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"})
    return folder


@pytest.fixture(scope="module")
def address(site):
    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(site))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def test_pages_and_files_outside_of_docs_are_in_the_site(site):
    found = {str(path.relative_to(site)) for path in site.rglob("*") if path.is_file()}
    models = {
        f"diffmm_dist/models/{path.parent.name}/index.html" for path in ROOT.glob("diffmm_dist/models/*/README.md")
    }
    assert {"cluster/index.html", "CHANGELOG.html", "cluster/kuberay/rayjob.yaml", *models} <= found
    assert not any(name.startswith("hooks/") for name in found)
    assert 'class="needs">needs: a Kubernetes cluster<' in (site / "cluster" / "index.html").read_text()


@needs_browser
def test_the_front_page_and_the_tutorial_in_a_browser(address, tmp_path):
    with browser() as running:
        for width in (1280, 420):
            front = Watched(running, f"{address}/index.html", width=width)
            assert front.page.locator("h1").first.inner_text().startswith("diffmm_dist")
            front.picture(tmp_path / f"front-{width}.png")
            front.page.locator("article").get_by_role("link", name="tutorial").first.click()
            front.page.wait_for_url("**/tutorial.html")
            front.picture(tmp_path / f"tutorial-{width}.png")
            assert front.page.evaluate("document.documentElement.scrollWidth") == width
            assert (front.outside, front.mistakes) == ([], [])


@needs_browser
def test_an_error_is_found_by_search(address):
    with browser() as running:
        seen = Watched(running, f"{address}/index.html")
        seen.page.get_by_placeholder("Search").fill("no configuration is named")
        result = seen.page.locator(".md-search-result__link").first
        result.wait_for()
        assert "troubleshooting.html" in result.get_attribute("href")
        assert (seen.outside, seen.mistakes) == ([], [])
