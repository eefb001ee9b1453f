"""Embeddings that lie in a file are mapped, once the file was found right; others are in memory, and the same."""

import mmap
import os

import numpy as np
import pyarrow as pa
import pytest

from diffmm_dist import storage
from diffmm_dist.bundles import files, rows
from diffmm_dist.bundles.pairs import Pairs
from diffmm_dist.bundles.rows import Rows, read_embedded
from diffmm_dist.data import arrow_files
from diffmm_dist.errors import DamagedError
from tests.support.bundles import random_array

COUNT, WIDTH = 50, 6
TABLE = random_array(COUNT, WIDTH, 4)


def written(folder, ids, *, compressed, monkeypatch):
    """The place of a file of embeddings in several record batches, and what bundle.json says of it."""
    monkeypatch.setattr(files, "ROWS_PER_BATCH", 13)
    files.write_table(f"{folder}/t.arrow", files.embedding_table(pa.chunked_array([ids]), TABLE), compressed=compressed)
    return {"embedding_dim": WIDTH, "files": {"t.arrow": storage.sha256(f"{folder}/t.arrow")}}


def base_of(array):
    while isinstance(array, np.ndarray) and array.base is not None:
        array = array.base
    return array.obj if isinstance(array, memoryview) else array


@pytest.mark.parametrize("ids", [pa.array(range(COUNT)), pa.array([f"ïd {i}" * (i % 3) for i in range(COUNT)])])
@pytest.mark.parametrize("compressed", [False, True])
def test_what_is_read_is_what_was_written(tmp_path, monkeypatch, ids, compressed):
    marker = written(tmp_path, ids, compressed=compressed, monkeypatch=monkeypatch)
    found = read_embedded(str(tmp_path), "t.arrow", marker, COUNT)
    assert found.ids.to_pylist() == ids.to_pylist()
    assert np.array_equal(found.rows.array(), TABLE)
    blocks = list(found.rows.blocks())
    assert [first for first, _ in blocks] == [0, 13, 26, 39]
    assert all(isinstance(base_of(block), mmap.mmap) is not compressed for _, block in blocks)
    chosen = np.array([49, 0, 13, 12, 13])
    assert np.array_equal(found.rows.take(chosen), TABLE[chosen])


def test_in_the_memory_store_it_is_held(monkeypatch):
    marker = written("memory://rows", pa.array(range(COUNT)), compressed=False, monkeypatch=monkeypatch)
    assert np.array_equal(read_embedded("memory://rows", "t.arrow", marker, COUNT).rows.array(), TABLE)


def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path, monkeypatch):
    marker = written(tmp_path, pa.array(range(COUNT)), compressed=False, monkeypatch=monkeypatch)
    place = tmp_path / "t.arrow"

    def replaced(*arguments):
        yield from arrow_files.read_placed(*arguments)
        other = tmp_path / "other"
        other.write_bytes(place.read_bytes())
        os.replace(other, place)

    monkeypatch.setattr(rows, "read_placed", replaced)
    with pytest.raises(DamagedError, match=r"t\.arrow has changed while it was read"):
        read_embedded(str(tmp_path), "t.arrow", marker, COUNT)


def test_rows_in_pieces_are_those_of_one_table():
    table = random_array(9, 4, 2)
    table[5] = 0
    pieces = Rows([table[:4], table[4:4], table[4:]], 4)
    assert len(pieces) == 9
    assert pieces.largest() == np.abs(table).max()
    lengths = np.linalg.norm(table, axis=1)
    lengths[5] = 1
    np.testing.assert_allclose(pieces.lengths(), lengths, rtol=1e-6)
    assert np.array_equal(pieces.and_more(table[:2]).array(), np.concatenate([table, table[:2]]))
    assert Rows([], 4).array().shape == (0, 4)


def test_pairs_are_sorted_and_counted_once():
    found = Pairs.of(np.array([2, 0, 2, 2]), np.array([5, 1, 0, 5]), num_rows=4, num_items=6)
    assert found.counts.tolist() == [1, 0, 2, 0]
    assert [found.of_row(row).tolist() for row in range(4)] == [[1], [], [0, 5], []]
    taken = found.take(np.array([2, 2, 1, 0]))
    assert [taken.of_row(row).tolist() for row in range(4)] == [[0, 5], [0, 5], [], [1]]
    assert taken.rows().tolist() == [0, 0, 1, 1, 3]
    assert found.take(np.array([], np.int64)).items.tolist() == []
