"""Pages about runs, opened in a browser: nothing of them leaves it, nothing goes wrong, and all parts are there."""

import pytest

from diffmm_dist.report.write import write_report
from tests.support.browser import Watched, browser, needs_browser
from tests.support.builders import small_config, synthetic_dataset, train_alone
from tests.support.names import with_evil_names

pytestmark = needs_browser
MODELS = ("popularity", "lightgcn", "diffmm", "adagcl")


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """A page of one run, and one of four systems, of a dataset whose names are markup."""
    folder = tmp_path_factory.mktemp("report")
    data = with_evil_names(synthetic_dataset(folder / "d", users=120, items=60, interactions=1800), folder / "evil")
    for name in MODELS:
        train_alone(small_config(data, folder / name, model={"name": name}, train={"epochs": 4}))
    for name, runs in (("one", ["diffmm"]), ("four", MODELS)):
        write_report([str(folder / run) for run in runs], str(folder / f"{name}.html"), k=20)
    return folder


@pytest.fixture(scope="module")
def running():
    with browser() as started:
        yield started


@pytest.mark.parametrize(("name", "heads", "charts"), [
    ("one", ["diffmm on evil", "Figures", "For whom, and of what", "Generated graphs", "Modality weights", "Curves",
             "Time and memory", "Environment, and the command that repeats the run"], 20),
    ("four", ["4 runs on evil", "Side by side", "Pair by pair, for the same users", "For whom, and of what",
              "Each run"], 5),
])  # fmt: skip
@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_a_page_opens_by_itself(pages, running, tmp_path, name, heads, charts, width, scheme):
    seen = Watched(running, (pages / f"{name}.html").as_uri(), width=width)
    seen.page.emulate_media(color_scheme=scheme)
    assert (seen.outside, seen.mistakes) == ([], [])
    found = seen.page.locator("main > h1, main > h2, main > section > h2").all_inner_texts()
    assert found == heads
    assert seen.page.title() == heads[0]  # nothing in a name has run
    assert sum(one.is_visible() for one in seen.page.locator("svg").all()) >= charts
    assert seen.page.evaluate("document.documentElement.scrollWidth") <= width  # no part is wider than the window
    light = seen.page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert light == (scheme == "light")
    assert seen.picture(tmp_path / f"{name}-{width}-{scheme}.png").stat().st_size > 10_000
    seen.page.close()


def test_a_page_is_printed_in_light_colours(pages, running, tmp_path):
    seen = Watched(running, (pages / "one.html").as_uri())
    seen.page.emulate_media(color_scheme="dark", media="print")
    assert seen.page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert seen.page.pdf(path=str(tmp_path / "one.pdf")).startswith(b"%PDF")
    seen.page.close()


def test_what_is_folded_opens(pages, running):
    seen = Watched(running, (pages / "four.html").as_uri())
    heads = seen.page.locator("main > details > section > h2", has_text="Modality weights")
    assert (heads.count(), heads.first.is_visible()) == (1, False)
    seen.page.locator("main > details > summary", has_text="diffmm").click()
    assert heads.first.is_visible()
    assert (seen.outside, seen.mistakes) == ([], [])
    seen.page.close()
