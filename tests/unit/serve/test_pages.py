"""The page and the OpenAPI document say what is answered."""

import json
import shlex
from html.parser import HTMLParser

import jsonschema
import pyarrow as pa
import pytest

from diffmm_dist.serve.answers import Answers
from diffmm_dist.serve.routes import ROUTES
from tests.support.bundles import recommender

ODD = "<b>'\"&amp;"
SOURCE = recommender(2, 3, ids=pa.array([ODD, "é"]), item_ids=pa.array([ODD, "1", "2"]))
ANSWERS = Answers(SOURCE, {"model": "<toy>", "sha256": "0" * 64, "since": "2026-01-01T00:00:00Z"})


def document():
    return json.loads(ANSWERS.reply("GET", "/openapi.json").body)


def test_the_document_is_one_of_openapi():
    models = pytest.importorskip("fastapi.openapi.models", reason="FastAPI is not installed")
    models.OpenAPI.model_validate(document())
    jsonschema.Draft202012Validator.check_schema({"$defs": document()["components"]["schemas"]})
    assert {(method.upper(), path) for path, of_path in document()["paths"].items() for method in of_path} == {
        (route.method, route.path) for route in ROUTES
    }


@pytest.mark.parametrize("route", [route for route in ROUTES if route.answers], ids=lambda route: route.name)
def test_examples_and_their_answers_have_the_form_that_the_document_gives(route):
    tree = document()
    operation = tree["paths"][route.path][route.method.lower()]
    body = b""
    if route.asks is not None:
        content = operation["requestBody"]["content"]["application/json"]
        _validator(tree, content["schema"]).validate(content["example"])
        assert not _validator(tree, content["schema"]).is_valid({**content["example"], "further": 1})
        body = json.dumps(content["example"]).encode()
    reply = ANSWERS.reply(route.method, route.path, body)
    assert reply.status == 200
    _validator(tree, operation["responses"]["200"]["content"][reply.media]["schema"]).validate(json.loads(reply.body))
    if route.asks is not None:
        wrong = ANSWERS.reply(route.method, route.path, b'{"k": 0}')
        form = operation["responses"][str(wrong.status)]["content"]["application/json"]["schema"]
        _validator(tree, form).validate(json.loads(wrong.body))


def _validator(tree, schema):
    return jsonschema.Draft202012Validator({**schema, "components": tree["components"]})


class Page(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.commands, self.inside = [], [], False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.inside = tag == "pre"
        assert not {"src", "href"} & {name for name, _ in attrs}

    def handle_data(self, data):
        if self.inside:
            self.commands.append(data)
            self.inside = False


def test_the_page_has_a_command_for_each_route_and_nothing_that_runs():
    reply = ANSWERS.reply("GET", "/", address="http://x'<i>:80")
    assert reply.media == "text/html; charset=utf-8"
    page = Page(reply.body.decode())
    assert not {"script", "b", "i", "toy", "link", "img"} & set(page.tags)
    commands = [shlex.split(command) for command in page.commands]
    assert [words[1] for words in commands] == [f"http://x'<i>:80{route.path}" for route in ROUTES]
    for route, words in zip(ROUTES, commands, strict=True):
        if route.asks is not None:
            reply = ANSWERS.reply(route.method, route.path, words[3].encode())
            assert reply.status == 200
            assert ODD in words[3].replace('\\"', '"')
