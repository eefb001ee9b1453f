"""What README.md, quickstart.md, take-home.md, data-format.md and api.md show, run as it stands there."""

import numpy as np
import pandas as pd
import pytest

pytest.importorskip("faiss", reason="faiss is not installed")

from diffmm_dist import api
from diffmm_dist.data.dataset import Dataset
from tests.support.builders import ROOT
from tests.support.page_runs import QUICK, PageRun
from tests.support.pages import blocks_of

DOCS = ROOT / "docs"


@pytest.fixture
def shop(tmp_path, monkeypatch):
    """A folder with tables like those of the tutorial, events.csv and pictures.csv with emb_0 to emb_5."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    random = np.random.default_rng(0)
    events = pd.DataFrame({"customer": random.integers(0, 40, 900), "product": random.integers(0, 30, 900)})
    events = events.assign(customer="c" + events["customer"].astype(str), product="p" + events["product"].astype(str))
    events.assign(at=pd.date_range("2026-01-01", periods=900, freq="2h")).to_csv("events.csv", index=False)
    pictures = pd.DataFrame(random.random((30, 6)), columns=[f"emb_{place}" for place in range(6)])
    pictures.assign(product=[f"p{number}" for number in range(30)]).to_csv("pictures.csv", index=False)


def test_the_readme(shop, run_cli):
    run = PageRun(run_cli, quick=QUICK)
    assert run.page(ROOT / "README.md") == 6
    assert run.names["ids"].shape == (2, 20)


def test_the_demo_in_detail_and_tables_of_other_libraries(shop, run_cli):
    pytest.importorskip("polars", reason="polars is not installed")
    run = PageRun(run_cli, quick=QUICK)
    assert run.page(DOCS / "quickstart.md") == 4
    assert run.page(DOCS / "take-home.md") == 7
    assert run.page(DOCS / "data-format.md") == 4
    made = [Dataset.open(f"datasets/from-{name}").original_ids("users") for name in ("pandas", "polars", "duckdb")]
    assert made[0].equals(made[2])
    assert set(made[1].to_pylist()) <= set(made[0].to_pylist())


def test_tables_of_spark(shop):
    pytest.importorskip("pyspark", reason="pyspark is not installed, which brings 400 MB")
    (block,) = [block for block in blocks_of(DOCS / "data-format.md") if "pyspark" in block.needs]
    exec(block.text, {})
    assert Dataset.open("datasets/from-spark").num_items == 30


def test_the_python_api(shop, run_cli, monkeypatch):
    quick = {"train": {"epochs": 2}, "graph": {"kernel": "csr"}, "monitoring": {"tensorboard": False}}
    whole = api.train
    monkeypatch.setattr(api, "train", lambda *given, **named: whole(*given, **{**named, **quick}))
    run = PageRun(run_cli)
    events = pd.read_csv("events.csv")
    purchases = pd.DataFrame({"user": events["customer"], "item": events["product"].str.replace("p", "item_")})
    pictures = (
        pd.read_csv("pictures.csv").assign(item=[f"item_{number}" for number in range(30)]).drop(columns="product")
    )
    run.names.update(purchases=purchases, pictures=pictures, users=["c1", "c2", "c3"], items=["item_4"],
                     rows=np.ones((2, 6)), print=lambda *_: None)  # fmt: skip
    assert run.page(DOCS / "api.md") == 2
    assert run.names["ids"].shape == (3, 20)
