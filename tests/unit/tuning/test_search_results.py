"""What a search ends with."""

import xml.etree.ElementTree as ET

import pytest

from diffmm_dist.runs.config import load_config
from diffmm_dist.tuning.journal import Journal, Search
from diffmm_dist.tuning.results import reasons, table, write_best, write_plot
from tests.support.builders import small_config

SPACE = {
    "train.learning_rate": {"log": [1e-4, 1e-2]},
    "model.embedding_dim": {"int": [4, 64], "log": True},
    "model.residual_weight": {"uniform": [0.0, 1.0]},
    "model.contrast.contrastive_anchor": {"choice": ["main", "modal"]},
}
CONFIG = small_config("d", "r")


@pytest.fixture
def journal(tmp_path):
    """Three trials: the second is the best, the third has failed."""
    search = Search(
        config=CONFIG.model_dump(mode="json"), space=SPACE, dataset="f", epochs=9, first_stop=1, seed=0
    )  # fmt: skip
    journal = Journal(str(tmp_path), search, command="python launch.py tune --space <s>.yaml")
    for number, figure in enumerate((0.1, 0.25, None)):
        values = dict(zip(SPACE, (1e-3 * (number + 1), 8, 0.5, "main"), strict=True))
        trial = journal.begin(values)
        if figure is None:
            journal.end(trial, "failed", reason="no memory")
        else:
            journal.report(trial, epochs=3, best_epoch=2, valid={"recall@20": figure}, seconds=1.0)
            journal.end(trial, "complete")
    return journal


def test_the_table_says_what_differs(journal):
    columns, rows = table(journal)
    assert columns == ["trial", "valid recall@20", "best epoch", "epochs", "state", "learning rate", "embedding dim",
                       "residual weight", "contrastive anchor"]  # fmt: skip
    assert rows == [
        ["t001", "0.2500", "2", "3", "complete", "0.002", "8", "0.5", "main"],
        ["t000", "0.1000", "2", "3", "complete", "0.001", "8", "0.5", "main"],
        ["t002", "-", "-", "0", "failed", "0.003", "8", "0.5", "main"],
    ]
    assert reasons(journal) == ["t002 failed: no memory"]


def test_the_best_configuration_can_be_trained_and_says_where_it_is_from(journal, tmp_path):
    place = write_best(journal, CONFIG)
    config = load_config(place)
    assert (config.train.learning_rate, config.train.epochs) == (2e-3, CONFIG.train.epochs)
    assert config.run.path == str(tmp_path / "best")
    text = (tmp_path / "best.yaml").read_text()
    assert "Trial:    t001, valid recall@20 0.2500 at epoch 2" in text
    assert f"Command:  python launch.py train --config {place}" in text


SVG = "{http://www.w3.org/2000/svg}"


def test_the_picture_has_every_trial_with_a_figure_in_every_panel_and_needs_nothing_beside_it(journal):
    text = open(write_plot(journal)).read()
    root = ET.fromstring(text)
    panels = root.findall(f"{SVG}g")
    assert len(panels) == 1 + len(SPACE)
    for panel in panels:
        dots = panel.findall(f"{SVG}circle")
        assert [dot.find(f"{SVG}title").text.split(",")[0] for dot in dots] == ["t000", "t001"]
        assert float(dots[1].get("cy")) < float(dots[0].get("cy"))  # the better one stands higher
    assert len(panels[0].findall(f"{SVG}polyline")) == 1
    assert text.count("http") == 1  # the name of the form itself


def test_a_search_without_any_figure_can_be_drawn(journal):
    for trial in journal.trials:
        trial["state"] = "failed"
    ET.fromstring(open(write_plot(journal)).read())
