"""What a bundle is asked, in original ids."""

import numpy as np
import pyarrow as pa
import pytest

from diffmm_dist import Filter
from diffmm_dist.bundles.asked import read_histories
from diffmm_dist.bundles.content import ContentMap, Modality
from diffmm_dist.errors import UserError
from tests.support.bundles import pairs_of, random_array, random_pairs, recommender

SEEN = random_pairs(6, 30, share=0.4, seed=5)
NUMBERS = pa.array(range(200, 230))


@pytest.fixture
def source():
    return recommender(6, 30, seen=SEEN)


def scores_of(source, row):
    return source.bundle.item_rows.array() @ source.bundle.user_rows.array()[row]


def test_the_best_items_are_those_of_ten_lines_of_numpy(source):
    ids, scores = source.recommend([103, 101, 103], k=4)
    for list_of_ids, list_of_scores, row in zip(ids, scores, (3, 1, 3), strict=True):
        expected = scores_of(source, row)
        expected[SEEN.of_row(row)] = -np.inf
        best = np.argsort(-expected, kind="stable")[:4]
        assert list_of_ids.tolist() == [f"item {item}" for item in best]
        np.testing.assert_allclose(list_of_scores, expected[best], rtol=1e-5)


def test_one_user_has_one_list_and_known_items_come_where_they_are_asked_for(source):
    ids, scores = source.recommend(102, k=30, exclude_seen=False)
    assert (ids.shape, scores.shape) == ((30,), (30,))
    assert ids.tolist() == [f"item {item}" for item in np.argsort(-scores_of(source, 2), kind="stable")]


@pytest.mark.parametrize("item_ids", [None, NUMBERS])
def test_where_a_list_ends_early_entries_are_masked(item_ids):
    seen = pairs_of([0] * 28, range(28), num_rows=6, num_items=30)
    ids, scores = recommender(6, 30, seen=seen, item_ids=item_ids).recommend([100, 101], k=5)
    assert ids.mask.tolist() == [[False] * 2 + [True] * 3, [False] * 5]
    assert ids[0].tolist()[2:] == [None] * 3
    assert np.isneginf(scores[0, 2:]).all()
    kind = np.int64 if item_ids is not None else object
    assert ids.dtype == kind
    full, _ = recommender(6, 30, seen=seen, item_ids=item_ids).recommend([101], k=5)
    assert type(full) is np.ndarray
    assert full.dtype == kind


def test_similar_is_the_cosine_without_itself(source):
    for table, one, similar in (
        (source.bundle.item_rows, "item 7", source.similar_items), (source.bundle.user_rows, 101, source.similar_users)
    ):  # fmt: skip
        rows = table.array() / np.linalg.norm(table.array(), axis=1, keepdims=True)
        row = 7 if one == "item 7" else 1
        cosines = rows @ rows[row]
        cosines[row] = -np.inf
        best = np.argsort(-cosines, kind="stable")[:3]
        ids, scores = similar(one, k=3)
        assert ids.tolist() == ([f"item {b}" for b in best] if one == "item 7" else [100 + b for b in best])
        np.testing.assert_allclose(scores, cosines[best], rtol=1e-5)


def test_rules_are_in_original_ids(source):
    allowed = [f"item {item}" for item in range(0, 30, 2)]
    ids, _ = source.recommend([100, 101], k=30, exclude_seen=False, filter=Filter(allowed, excluded=["item 4"]))
    assert set(ids.compressed()) == set(allowed) - {"item 4"}
    categories = {f"item {item}": "first" if item < 20 else "second" for item in range(25)}
    for given in (categories, (list(categories), list(categories.values())),
                  (pa.array(list(categories)), pa.array(list(categories.values())))):  # fmt: skip
        ids, _ = source.recommend(100, k=9, exclude_seen=False, filter=Filter(categories=given, at_most=2))
        counts = [sum(categories.get(item) == name for item in ids) for name in ("first", "second", None)]
        assert counts == [2, 2, 5]
    similar, _ = source.similar_items("item 2", k=30, filter=Filter(allowed=["item 1", "item 2"]))
    assert similar.tolist()[:2] == ["item 1", None]


def test_an_item_of_several_categories_is_one_of_the_first(source):
    twice = Filter(categories=(["item 1", "item 1", "item 2"], ["a", "b", "b"]), at_most=np.int64(1))
    rule = source.rule(twice)
    assert rule.categories[1] != rule.categories[2]


def test_texts_that_are_no_numbers_are_unknown_to_a_bundle_of_numbers(tmp_path):
    source = recommender(6, 30, item_ids=NUMBERS)
    (tmp_path / "h.csv").write_text("user,item\nann,208\nann,abc\nbob,\n")
    found = read_histories(str(tmp_path / "h.csv"), source.items)
    assert (found.users.to_pylist(), found.pairs.items.tolist(), found.num_unknown) == (["ann"], [8], 1)
    assert recommender(6).users.rows_once(["105", "0105", "100"]).tolist() == [5, 0]
    last = recommender(1, 1, item_ids=pa.array([2**63 - 1]), content=CONTENT)
    with pytest.raises(UserError, match="no whole numbers left for the ids of new items"):
        last.cold_items(random_array(2, 4))


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"filter": Filter(allowed=["item 99"])}, "no item 'item 99'"), ({"filter": Filter(excluded=3.5)}, "no column"),
        ({"filter": {"allowed": ["item 1"]}}, "filter is dict: give a Filter"),
        ({"filter": Filter(categories={"item 1": 1, "item 2": "a"})}, "of one type of category"),
        ({"filter": Filter(categories={"item 1": ["a"]})}, "categories must be"),
        ({"filter": Filter(at_most=0)}, "at_most is 0"), ({"filter": Filter(categories=3)}, "categories must be"),
        ({"filter": Filter(categories=(["item 1"], ["a", "b"]))}, "1 items have 2 categories"),
        ({"k": 0}, "k is 0: it must be"), ({"k": 2.5}, "k is 2.5"), ({"k": True}, "k is True"),
    ],
)  # fmt: skip
def test_wrong_rules_are_one_sentence(source, more, said):
    with pytest.raises(UserError, match=said):
        source.recommend([100], **more)


HISTORIES = [["item 2", "item 1"], ["item 9", "item 8"]]


@pytest.mark.parametrize(
    "given",
    [HISTORIES, tuple(HISTORIES), np.array(HISTORIES), np.array(HISTORIES, object), pa.array(HISTORIES),
     iter(HISTORIES), [np.array(one) for one in HISTORIES], pa.chunked_array([HISTORIES[:1], HISTORIES[1:]])],
)  # fmt: skip
def test_histories_in_any_form(source, given):
    assert source.fold_in(given, k=3)[0].tolist() == [source.fold_in(iter(one), k=3)[0].tolist() for one in HISTORIES]


def test_histories_in_columns_of_data_frames(source):
    expected = source.fold_in(HISTORIES, k=3)[0].tolist()
    for name in ("pandas", "polars"):
        library = pytest.importorskip(name, reason=f"{name} is not installed")
        assert source.fold_in(library.Series(HISTORIES), k=3)[0].tolist() == expected
        assert source.fold_in(library.Series(HISTORIES[0]), k=3)[0].tolist() == expected[0]


def test_folded_in_alone_and_together(source):
    alone, _ = source.fold_in(["item 1", "item 2"], k=4)
    together, scores = source.fold_in([["item 2", "item 1", "item 1"], ["item 9"]], k=4)
    assert together.shape == scores.shape == (2, 4)
    assert together[0].tolist() == alone.tolist()
    assert not {"item 1", "item 2"} & set(alone)
    with_known, _ = source.fold_in(["item 1", "item 2"], k=30, exclude_seen=False)
    assert len(with_known) == 30
    only, _ = source.fold_in(pa.array(["item 1"]), k=2, filter=Filter(allowed=["item 5", "item 1"]))
    assert only.tolist() == ["item 5", None]
    for nothing in ([], [["item 1"], []]):
        with pytest.raises(UserError, match="a history holds no item"):
            source.fold_in(nothing)
    with pytest.raises(UserError, match="no item 'x'"):
        source.fold_in([["item 1"], ["x"]])


VISUAL = Modality(random_array(1, 4, 9)[0], np.float32(0.5))
CONTENT = ContentMap(random_array(1, 3, 8)[0], {"visual": VISUAL}, random_array(3, 4, 10))


@pytest.mark.parametrize(("item_ids", "names"), [(None, ["cold_0", "cold_1"]), (NUMBERS, [230, 231])])
def test_cold_items_are_ranked_beside_the_others(item_ids, names):
    source = recommender(6, 30, seen=SEEN, item_ids=item_ids, content=CONTENT)
    features = random_array(2, 4, 11)
    more = source.cold_items(features)
    found = (features / np.linalg.norm(features, axis=1, keepdims=True) - VISUAL.mean) / VISUAL.deviation
    rows = CONTENT.base + found / np.linalg.norm(found, axis=1, keepdims=True) @ CONTENT.weights.T
    ids, scores = more.recommend([101], k=2, filter=Filter(allowed=names))
    expected = rows @ source.bundle.user_rows.array()[1]
    assert ids[0].tolist() == [names[place] for place in np.argsort(-expected)]
    np.testing.assert_allclose(np.sort(scores[0]), np.sort(expected), rtol=1e-5)
    assert set(more.similar_items(names, k=31)[0][0]) >= set(source.items.values.to_pylist())
    assert len(source.items) == 30
    named = source.cold_items({"visual": features}, ids=[7, 8] if item_ids is not None else ["x", "y"])
    assert len(named.items) == 32


@pytest.mark.parametrize(
    ("features", "ids", "said"),
    [
        (random_array(2, 5), None, "'visual' has 4 features an item; an array of .n, 4."), (3, None, r"\(n, 4\)"),
        (random_array(2, 4), ["item 1", "x"], "has an item 'item 1' already"),
        ({}, None, "features of visual are needed"),
        (random_array(2, 4), ["x", "x"], "an id is given twice"), (random_array(2, 4), ["x"], "2 items .* 1 have ids"),
        ({"visual": random_array(2, 4), "text": random_array(2, 4)}, None, "and visual, text are given"),
        (np.full((1, 4), np.nan), None, "hold NaN"),
        (np.full((1, 4), 1j), None, "is no array of numbers"), ([["a"] * 4], None, "is no array of numbers"),
    ],
)  # fmt: skip
def test_what_is_no_cold_item_is_one_sentence(features, ids, said):
    with pytest.raises(UserError, match=said):
        recommender(6, 30, content=CONTENT).cold_items(features, ids)


def test_without_a_map_of_features_there_are_no_cold_items(source):
    with pytest.raises(UserError, match="does not say how features become embeddings"):
        source.cold_items(random_array(2, 4))
