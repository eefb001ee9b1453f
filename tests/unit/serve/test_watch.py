"""A bundle that is replaced while it is served."""

import json
import logging
import shutil

import numpy as np
import pyarrow as pa
import pytest

from diffmm_dist import storage
from diffmm_dist.bundles.files import (
    FORMAT_NAME,
    ITEMS,
    MARKER,
    SEEN,
    SEEN_SCHEMA,
    USERS,
    Marker,
    embedding_table,
    write_table,
)
from diffmm_dist.errors import UserError
from diffmm_dist.serve.watch import Watched
from tests.support.bundles import random_array


def write_bundle(place, *, items=4, model="toy"):
    """A bundle of two users."""
    place.mkdir()
    for name, count in ((USERS, 2), (ITEMS, items)):
        ids = pa.chunked_array([pa.array(range(count))])
        write_table(str(place / name), embedding_table(ids, random_array(count, 3)), compressed=False)
    write_table(str(place / SEEN), pa.table([np.array([0]), np.array([1])], schema=SEEN_SCHEMA))
    files = {name: storage.sha256(str(place / name)) for name in (USERS, ITEMS, SEEN)}
    sizes = {"num_users": 2, "num_items": items, "num_seen": 1, "embedding_dim": 3}
    marker = Marker(format=FORMAT_NAME, version=1, model=model, best_epoch=0, dataset="d", files=files, **sizes)
    storage.write_record(str(place / MARKER), marker)


def replace(place, **changes):
    new = place.with_name("new")
    write_bundle(new, **changes)
    shutil.rmtree(place)
    new.rename(place)


@pytest.fixture
def place(tmp_path):
    write_bundle(tmp_path / "b")
    return tmp_path / "b"


def health(watched):
    return json.loads(watched.answers.reply("GET", "/healthz").body)


def recommended(watched):
    return json.loads(watched.answers.reply("POST", "/recommend", b'{"users": [1]}').body)["recommendations"][0]


def test_another_bundle_takes_the_place_of_the_one_that_is_served(place):
    watched = Watched(str(place))
    before, answers = health(watched), watched.answers
    assert before["sha256"] == storage.sha256(str(place / MARKER))
    assert len(recommended(watched)["items"]) == 4
    assert not watched.look()
    assert watched.answers is answers
    replace(place, items=6, model="other")
    assert len(recommended(watched)["items"]) == 4  # what was read stays, though its files are gone
    assert watched.look()
    assert len(recommended(watched)["items"]) == 6
    assert (health(watched)["model"], health(watched)["items"]) == ("other", 6)
    assert health(watched)["sha256"] == storage.sha256(str(place / MARKER)) != before["sha256"]
    assert not watched.look()


def damaged(place):
    replace(place, items=6)
    data = (place / ITEMS).read_bytes()
    (place / ITEMS).write_bytes(data[:-300] + b"x" * 300)


def without_a_file(place):
    replace(place, items=6)
    (place / ITEMS).unlink()


def gone(place):
    shutil.rmtree(place)


def no_bundle(place):
    (place / MARKER).write_text("{}")


@pytest.mark.parametrize("change", [damaged, without_a_file, gone, no_bundle])
def test_one_that_cannot_be_read_is_said_once_and_the_former_one_goes_on(place, change, caplog, monkeypatch):
    monkeypatch.setattr("diffmm_dist.serve.watch.logger", logging.getLogger("watched"))
    caplog.set_level(logging.INFO, "watched")
    watched = Watched(str(place))
    before = health(watched)
    change(place)
    for _ in range(3):
        assert not watched.look()
    assert health(watched) == before
    assert len(recommended(watched)["items"]) == 4
    (record,) = caplog.records
    assert record.getMessage().startswith("the bundle served before goes on answering: ")
    assert str(place) in record.getMessage()
    assert "\n" not in record.getMessage()
    shutil.rmtree(place, ignore_errors=True)
    write_bundle(place, items=5)
    assert watched.look()  # the next one is taken
    assert health(watched)["items"] == 5


def test_at_the_start_there_must_be_one(tmp_path):
    with pytest.raises(UserError, match="cannot read"):
        Watched(str(tmp_path / "none"))
