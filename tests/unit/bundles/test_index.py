"""An index in a bundle: what it finds, and what is refused of it."""

import shutil

import numpy as np
import pyarrow as pa
import pytest

pytest.importorskip("faiss", reason="faiss is not installed")

from diffmm_dist.bundles import files, index
from diffmm_dist.bundles.index import KINDS, index_tables, read_index
from diffmm_dist.bundles.ranking import Rule, best
from diffmm_dist.bundles.recommender import Recommender, recall_of_index
from diffmm_dist.bundles.rows import Rows
from diffmm_dist.errors import UserError
from diffmm_dist.exports.bundle import export_bundle
from diffmm_dist.training.trained import load_trained
from tests.support import damage
from tests.support.builders import small_config, synthetic_dataset, train_alone
from tests.support.bundles import random_array, random_pairs

ITEMS, WIDTH = 3000, 8


def in_groups(count, seed):
    centres = 2 * random_array(30, WIDTH, 1)
    return centres[np.random.default_rng(seed).integers(0, 30, count)] + 0.5 * random_array(count, WIDTH, seed)


@pytest.fixture(params=KINDS)
def found(request, monkeypatch):
    """An index, put together as from a bundle, and the rows that it is of."""
    rows = Rows([in_groups(1100, 2), in_groups(ITEMS - 1100, 3)], WIDTH)
    tables = index_tables(request.param, rows)
    monkeypatch.setattr(index, "read_table", lambda uri, name, marker, schemas, count: tables[name])
    return read_index("x", {"further": {name: table.num_rows for name, table in tables.items()}}, rows), rows


@pytest.mark.parametrize("share", [None, 0.5])
def test_most_of_the_exact_lists_are_found(found, share):
    searched, rows = found
    asked, hidden = in_groups(200, 4), random_pairs(200, ITEMS, share=0.01)
    allowed = None if share is None else np.random.default_rng(6).random(ITEMS) < share
    lists = searched.search(asked, 10, hidden=hidden, allowed=allowed)
    exact = best(asked, rows, 10, hidden=hidden, rule=Rule(allowed))
    assert np.mean([len({*a} & {*b}) / 10 for a, b in zip(lists.rows, exact.rows, strict=True)]) > 0.9
    assert (np.diff(lists.scores, axis=1) <= 0).all()
    for row, listed in enumerate(lists.rows):
        assert not set(listed) & set(hidden.of_row(row))
        assert allowed is None or allowed[listed[listed >= 0]].all()
    places = np.where(lists.rows < 0, 0, lists.rows)
    expected = np.einsum("bd,bkd->bk", asked, rows.array()[places])
    np.testing.assert_allclose(lists.scores[lists.rows >= 0], expected[lists.rows >= 0], rtol=1e-4)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    data = synthetic_dataset(folder / "d", users=80, items=100, interactions=900)
    train_alone(small_config(data, folder / "run", model={"name": "lightgcn"}, train={"epochs": 1}))
    return load_trained(str(folder / "run"))


@pytest.fixture(scope="module", params=KINDS)
def exported(request, run, tmp_path_factory):
    place = tmp_path_factory.mktemp(request.param) / "b"
    export_bundle(run, str(place), index=request.param)
    return place


def test_a_bundle_with_an_index_is_asked_through_it(exported):
    exact, found = Recommender.load(str(exported)), Recommender.load(str(exported), index="faiss")
    users = exact.users.values
    assert "the exact top 20 of 80 users" in recall_of_index(str(exported))
    lists = [one.recommend(users, k=20)[0] for one in (exact, found)]
    assert np.mean([len({*a} & {*b}) / 20 for a, b in zip(*lists, strict=True)]) > 0.7
    # Lists that ask for more than the index finds are ranked exactly.
    assert found.recommend(users, k=100)[0].tolist() == exact.recommend(users, k=100)[0].tolist()


def test_without_an_index_it_cannot_be_asked(run, tmp_path):
    export_bundle(run, str(tmp_path / "b"))
    with pytest.raises(UserError, match="has no index; make one with `export RUN --out PLACE --index ivf`"):
        Recommender.load(str(tmp_path / "b"), index="faiss")
    with pytest.raises(UserError, match="index is 'annoy': it must be exact or faiss"):
        Recommender.load(str(tmp_path / "b"), index="annoy")


@pytest.mark.parametrize("value", [-5, 2**20, 2**31 - 1])
def test_numbers_that_lead_elsewhere_are_refused(exported, tmp_path, value):
    for name in (index.CLUSTERS, index.LEVELS, index.NEIGHBOURS):
        if not (exported / name).exists():
            continue
        place = tmp_path / name
        shutil.copytree(exported, place)
        column = damage.read_table(place / name).column("value").to_numpy().copy()
        column[3] = value
        schema = pa.schema([pa.field("value", pa.int32(), nullable=False)])
        damage.write_table(place / name, pa.Table.from_arrays([pa.array(column)], schema=schema))
        damage.forge(place, files.MARKER)
        with pytest.raises(UserError, match=f"{name} is damaged|{index.NEIGHBOURS} is damaged"):
            Recommender.load(str(place), index="faiss")
