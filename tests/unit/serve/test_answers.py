"""What requests are answered, without a server; tests/integration/test_serve.py asks Ray Serve."""

import json

import pyarrow as pa
import pytest

from diffmm_dist.bundles.recommender import Filter
from diffmm_dist.bundles.tables import recommend
from diffmm_dist.serve import answers
from diffmm_dist.serve.answers import Answers
from diffmm_dist.serve.forms import LARGEST_BYTES, MOST_ITEMS, MOST_RULED, MOST_USERS
from tests.support.bundles import random_pairs, recommender

SERVED = {"model": "toy", "sha256": "0" * 64, "since": "2026-01-01T00:00:00Z"}
ITEMS = [f"ï{i}" for i in range(9)]


def of_ids(ids):
    seen = random_pairs(len(ids), 9, share=0.4)
    return recommender(len(ids), 9, seen=seen, ids=pa.array(ids), item_ids=pa.array(ITEMS))


SOURCE = of_ids([100, 101, 102])


def reply(path, body, source=SOURCE):
    return Answers(source, SERVED).reply("POST", path, body if isinstance(body, bytes) else json.dumps(body).encode())


def ask(path, body, source=SOURCE):
    found = reply(path, body, source)
    assert found.status == 200, found.body
    return json.loads(found.body)


@pytest.mark.parametrize(("ids", "users"), [([100, 101, 102], [102, 100]), (["a", "b", "0"], ["0", "a"])])
def test_the_same_as_the_command_line_recommends_in_the_order_asked_for(ids, users):
    source = of_ids(ids)
    expected = pa.concat_tables(recommend(source, source.users.rows(users), k=3)).to_pylist()
    for texts in (users, [str(user) for user in users], [users[0], *users, str(users[1])]):
        answered = ask("/recommend", {"users": texts, "k": 3}, source)["recommendations"]
        assert [entry["user"] for entry in answered] == users
        for key, of_row in (("items", "item"), ("scores", "score")):
            assert [value for entry in answered for value in entry[key]] == [row[of_row] for row in expected]


def test_known_items_only_where_they_are_asked_for():
    (found,), (everything,) = (
        ask("/recommend", {"users": [101], "k": 9, "include_seen": seen})["recommendations"] for seen in (False, True)
    )
    assert len(everything["items"]) == 9 > len(found["items"])
    assert set(found["items"]) < set(everything["items"])


def test_rules_say_what_may_be_listed():
    every = {"users": [100, 101], "k": 9, "include_seen": True}
    for path, body in (("/recommend", every), ("/fold-in", {"items": ITEMS[:2], "k": 9, "include_seen": True})):
        for entry in ask(path, {**body, "allowed": ITEMS[:4], "excluded": ITEMS[3:6]})["recommendations"]:
            assert set(entry["items"]) == set(ITEMS[:3])
            assert len(entry["items"]) == len(entry["scores"]) == 3


def test_what_is_similar_to_items_and_to_users():
    answered = ask("/similar", {"items": [ITEMS[4], ITEMS[1], ITEMS[4]], "k": 3})["similar"]
    expected = SOURCE.similar_items([ITEMS[4], ITEMS[1]], 3)
    assert answered == [
        {"item": name, "items": items, "scores": scores}
        for name, items, scores in zip(ITEMS[4:0:-3], expected.ids.tolist(), expected.scores.tolist(), strict=True)
    ]
    (of_user,) = ask("/similar", {"users": ["101"], "k": 50})["similar"]
    assert of_user["user"] == 101
    assert of_user["users"] == SOURCE.similar_users(101, 2).ids.tolist()


def test_histories_are_folded_in():
    histories = [ITEMS[:3], [ITEMS[8]], ITEMS]
    found = ask("/fold-in", {"histories": histories, "k": 9})["recommendations"]
    assert [len(entry["items"]) for entry in found] == [6, 8, 0]
    for history, entry in zip(histories[:2], found, strict=False):
        expected = SOURCE.fold_in(history, 9, filter=Filter(excluded=history))
        assert entry["items"] == [item for item in expected.ids.tolist() if item is not None]
        assert ask("/fold-in", {"items": history, "k": 9})["recommendations"] == [
            {"items": entry["items"], "scores": pytest.approx(entry["scores"], abs=1e-6)}
        ]


def test_health_says_which_bundle_is_served():
    found = Answers(SOURCE, SERVED).reply("GET", "/healthz")
    assert json.loads(found.body) == {"status": "ok", "users": 3, "items": 9, **SERVED}
    assert Answers(SOURCE, SERVED).reply("HEAD", "/healthz").status == 200


@pytest.mark.parametrize("entries", [answers._ENTRIES, 1])
def test_requests_that_are_ranked_together_are_answered_as_alone(entries, monkeypatch):
    monkeypatch.setattr(answers, "_ENTRIES", entries)
    ruled = {"users": [102], "k": 3, "excluded": [ITEMS[0]]}
    bodies = [json.dumps(body).encode() for body in (
        {"users": [100], "k": 3}, {"users": [7]}, {"users": [102, 100, 102], "k": 3}, {"users": [101], "k": 2},
        {"users": [101], "k": 3, "include_seen": True}, ruled, {**ruled, "users": [100]},
        {**ruled, "excluded": ["none such"]}, {"users": [101], "k": 3}, [],
    )]  # fmt: skip
    together = Answers(SOURCE, SERVED).recommend_all(bodies)
    assert [found.status for found in together] == [200, 422, 200, 200, 200, 200, 200, 422, 200, 400]
    for found, body in zip(together, bodies, strict=True):
        alone = reply("/recommend", body)
        assert found.status == alone.status
        assert json.loads(found.body) == _near(json.loads(alone.body))


def _near(answered):
    """An answer whose scores may be rounded as another product rounds them."""
    if "error" in answered:
        return answered
    lists = [{**entry, "scores": pytest.approx(entry["scores"], abs=1e-6)} for entry in answered["recommendations"]]
    return {"recommendations": lists}


@pytest.mark.parametrize("count", [2, 3])
def test_together_they_are_one_product(count, monkeypatch):
    asked = []
    lists = SOURCE.lists
    monkeypatch.setattr(
        SOURCE, "lists", lambda rows, *args, **kwargs: asked.append(rows) or lists(rows, *args, **kwargs)
    )
    Answers(SOURCE, SERVED).recommend_all([json.dumps({"users": [100 + i]}).encode() for i in range(count)])
    assert [rows.tolist() for rows in asked] == [list(range(count))]


MANY = [str(i) for i in range(MOST_RULED + 1)]


@pytest.mark.parametrize(("path", "body", "status", "text"), [
    ("/recommend", b"", 400, "not JSON that can be read"), ("/similar", b"{", 400, "not JSON"),
    ("/fold-in", b"\xff", 400, "not JSON"),
    ("/recommend", b'{"users": [1], "users": [2]}', 400, "'users' is set twice"),
    ("/recommend", b"[" * 100 + b"]" * 100, 400, "nested deeper"),
    ("/recommend", b"[1]", 400, 'no JSON object; send {"users": [100], "k": 3}'),
    ("/recommend", b" " * (LARGEST_BYTES + 1), 413, "more than 1 MiB"),
    ("/recommend", rb'{"users": ["\ud800"]}', 422, "these are no user ids"),
    ("/recommend", rb'{"\ud800": 1, "\ud800": 2}', 400, r"'\ud800' is set twice"),
    ("/recommend", {"user": [1]}, 422, "did you mean 'users'?"),
    ("/recommend", {"k": 3}, 422, "users must be a list of ids"),
    ("/recommend", {"users": []}, 422, "users must be"), ("/recommend", {"users": "100"}, 422, "users must be"),
    ("/recommend", {"users": [True]}, 422, "users must be"), ("/recommend", {"users": [1.5]}, 422, "users must be"),
    ("/recommend", {"users": [100] * (MOST_USERS + 1)}, 422, "1,001 users; ask for at most 1,000"),
    ("/recommend", {"users": [100, 7]}, 422, "the bundle has no user"),
    ("/recommend", {"users": ["x"]}, 422, "are whole numbers, not"),
    ("/recommend", {"users": [10**30]}, 422, "not"),
    ("/recommend", {"users": [100], "k": 0}, 422, "k must be a whole number from 1 to"),
    ("/recommend", {"users": [100], "k": MOST_ITEMS + 1}, 422, "k must be a whole number from 1 to 1,000"),
    ("/recommend", {"users": [100], "k": True}, 422, "k must be"),
    ("/recommend", {"users": [100], "k": "3"}, 422, "k must be"),
    ("/recommend", {"users": [100], "include_seen": 1}, 422, "include_seen must be true or false"),
    ("/recommend", {"users": [100], "allowed": []}, 422, "allowed must be a list of ids"),
    ("/recommend", {"users": [100], "excluded": MANY}, 422, "10,001 excluded; ask for at most 10,000"),
    ("/recommend", {"users": [100], "excluded": ["x"]}, 422, "the bundle has no item"),
    ("/similar", {}, 422, "give items or users, one of the two; send"),
    ("/similar", {"items": ["a"], "users": [100]}, 422, "give items or users"),
    ("/similar", {"items": MANY[:1001]}, 422, "items names 1,001 items"),
    ("/similar", {"items": ["x"]}, 422, "the bundle has no item"),
    ("/fold-in", {"k": 3}, 422, "give histories or items"),
    ("/fold-in", {"histories": [[]]}, 422, "histories must be a list of histories"),
    ("/fold-in", {"histories": ["x"]}, 422, "histories must be"),
    ("/fold-in", {"histories": [["x"]] * 1001}, 422, "histories names 1,001 histories"),
    ("/fold-in", {"histories": [MANY[:1001]]}, 422, "histories must be a list of histories"),
    ("/fold-in", {"items": ["x"]}, 422, "the bundle has no item"),
])  # fmt: skip
def test_a_wrong_request_is_one_sentence(path, body, status, text):
    found = reply(path, body)
    answer = json.loads(found.body)
    assert (found.status, list(answer)) == (status, ["error"])
    assert text in answer["error"]
    assert "\n" not in answer["error"]


@pytest.mark.parametrize(("method", "path", "status", "text"), [
    ("GET", "/x", 404, "nothing at '/x'; ask for GET /, GET /healthz"),
    ("GET", "/recommend", 405, "takes POST"), ("HEAD", "/recommend", 405, "takes POST"),
    ("POST", "/healthz", 405, "takes GET, not"), ("GET", "/healthz/../x", 404, "nothing at"),
])  # fmt: skip
def test_what_is_not_there(method, path, status, text):
    found = Answers(SOURCE, SERVED).reply(method, path)
    assert found.status == status
    assert text in json.loads(found.body)["error"]
