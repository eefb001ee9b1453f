"""What requests are answered, without a server; tests/integration/test_serve.py asks Ray Serve."""

import json

import pyarrow as pa
import pytest

from diffmm_dist.export.bundle import Bundle
from diffmm_dist.export.recommend import recommend, user_rows_of
from diffmm_dist.serve.answers import LARGEST_BYTES, MOST_USERS, Answers, RequestError
from tests.support.builders import random_pairs, random_rows


def bundle(ids):
    return Bundle(
        pa.chunked_array([pa.array(ids)]), pa.chunked_array([pa.array([f"ï{i}" for i in range(9)])]),
        random_rows(len(ids), 3, 1), random_rows(9, 3, 2), random_pairs(len(ids), 9, share=0.4),
    )  # fmt: skip


SOURCE = bundle([100, 101, 102])


def ask(body, source=SOURCE):
    return Answers(source).answer("POST", "/recommend", json.dumps(body).encode() if isinstance(body, dict) else body)


@pytest.mark.parametrize(("ids", "users"), [([100, 101, 102], [102, 100]), (["a", "b", "0"], ["0", "a"])])
def test_the_same_as_the_command_line_recommends_in_the_order_asked_for(ids, users):
    source = bundle(ids)
    rows = user_rows_of(source, [str(user) for user in users])
    expected = pa.concat_tables(recommend(source, rows, k=3)).to_pylist()
    for texts in (users, [str(user) for user in users]):
        answered = ask({"users": texts, "k": 3}, source)["recommendations"]
        assert [entry["user"] for entry in answered] == users
        for key, of_row in (("items", "item"), ("scores", "score")):
            assert [value for entry in answered for value in entry[key]] == [row[of_row] for row in expected]


def test_known_items_only_where_they_are_asked_for():
    (found,), (everything,) = (
        ask({"users": [101], "k": 9, "include_seen": seen})["recommendations"] for seen in (False, True)
    )
    assert len(everything["items"]) == 9 > len(found["items"])
    assert set(found["items"]) < set(everything["items"])


def test_health_says_what_is_there():
    assert Answers(SOURCE).answer("GET", "/healthz", b"") == {"status": "ok", "users": 3, "items": 9}


@pytest.mark.parametrize(("body", "status", "text"), [
    (b"", 400, "not JSON that can be read"), (b"{", 400, "not JSON"), (b"\xff", 400, "not JSON"),
    (b'{"users": [1], "users": [2]}', 400, "'users' is set twice"), (b"[" * 100 + b"]" * 100, 400, "nested deeper"),
    (b"[1]", 400, "no JSON object"), (b" " * (LARGEST_BYTES + 1), 413, "more than 1 MiB"),
    (rb'{"users": ["\ud800"]}', 422, "users must be"),
    (rb'{"\ud800": 1, "\ud800": 2}', 400, r"'\ud800' is set twice"),
    ({"user": [1]}, 422, "did you mean 'users'?"), ({"k": 3}, 422, "users must be a list of ids"),
    ({"users": []}, 422, "users must be"), ({"users": "100"}, 422, "users must be"),
    ({"users": [True]}, 422, "users must be"), ({"users": [1.5]}, 422, "users must be"),
    ({"users": [100] * (MOST_USERS + 1)}, 422, "1,001 users; ask for at most 1,000"),
    ({"users": [100, 7]}, 422, "the bundle has no user"), ({"users": ["x"]}, 422, "are whole numbers, not"),
    ({"users": [100], "k": 0}, 422, "k must be a whole number from 1 to"),
    ({"users": [100], "k": True}, 422, "k must be"), ({"users": [100], "k": "3"}, 422, "k must be"),
    ({"users": [100], "include_seen": 1}, 422, "include_seen must be true or false"),
])  # fmt: skip
def test_a_wrong_request_is_one_sentence(body, status, text):
    with pytest.raises(RequestError) as raised:
        ask(body)
    assert raised.value.status == status
    assert text in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(("method", "path", "status", "text"), [
    ("GET", "/", 404, "nothing at '/'; ask for GET /healthz, POST /recommend"),
    ("GET", "/recommend", 405, "takes POST"),
    ("POST", "/healthz", 405, "takes GET, not"), ("GET", "/healthz/../x", 404, "nothing at"),
])  # fmt: skip
def test_what_is_not_there(method, path, status, text):
    with pytest.raises(RequestError, match=text) as raised:
        Answers(SOURCE).answer(method, path, b"")
    assert raised.value.status == status
