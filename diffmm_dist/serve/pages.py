"""What describes the routes: an OpenAPI document for programs, and a page for people."""

import json
import shlex
from collections.abc import Sequence
from html import escape
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from diffmm_dist import __version__
from diffmm_dist.serve.forms import Mistake
from diffmm_dist.serve.routes import HTML, JSON, ROUTES, Route

_SCHEMAS = "#/components/schemas/"
_WRONG = {
    400: "The body is no JSON.",
    413: "The body is too long.",
    422: "The body asks for what is not there, or is of another form.",
}
# Nothing is loaded from anywhere, and nothing runs.
PAGE_HEADERS = {"content-security-policy": "default-src 'none'; style-src 'unsafe-inline'"}
_STYLE = (
    "body{font:16px/1.5 sans-serif;max-width:60em;margin:2em auto;padding:0 1em}"
    "pre{background:#f2f2f2;padding:.7em;overflow:auto}td,th{padding:.2em .8em .2em 0;text-align:left;"
    "vertical-align:top}"
)


def openapi(examples: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Return the OpenAPI document.

    Args:
        examples: a body by the name of each route that takes one.
    """
    forms = list(dict.fromkeys(form for route in ROUTES for form in (route.asks, route.answers) if form is not None))
    modes = [(form, "validation") for form in (*forms, Mistake)]
    _, schemas = models_json_schema(modes, ref_template=f"{_SCHEMAS}{{model}}")  # type: ignore[arg-type]
    paths: dict[str, dict[str, Any]] = {}
    for route in ROUTES:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route, examples)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Recommendations of diffmm-dist", "version": __version__},
        "paths": paths,
        "components": {"schemas": schemas["$defs"]},
    }


def _operation(route: Route, examples: dict[str, dict[str, Any]]) -> dict[str, Any]:
    form = _reference(route.answers) if route.answers else {"type": "string" if route.media == HTML else "object"}
    media = route.media.partition(";")[0]
    operation: dict[str, Any] = {
        "operationId": route.name,
        "summary": route.summary,
        "responses": {"200": {"description": "The answer.", "content": {media: {"schema": form}}}},
    }
    if route.asks is not None:
        content = {JSON: {"schema": _reference(route.asks), "example": examples[route.name]}}
        operation["requestBody"] = {"required": True, "content": content}
        wrong = {JSON: {"schema": _reference(Mistake)}}
        for status, text in _WRONG.items():
            operation["responses"][str(status)] = {"description": text, "content": wrong}
    return operation


def _reference(form: type[BaseModel]) -> dict[str, str]:
    return {"$ref": f"{_SCHEMAS}{form.__name__}"}


def page(address: str, title: str, examples: dict[str, dict[str, Any]]) -> str:
    """Return the page: every route, what it takes and gives, and a line for curl.

    Args:
        address: where the server was asked, without a slash at its end.
        title: what is served.
        examples: as in ``openapi``.
    """
    parts = [_of_route(route, address, examples.get(route.name)) for route in ROUTES]
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f"<style>{_STYLE}</style></head><body><h1>{escape(title)}</h1>"
        "<p>Ids are those of the raw data. What is wrong with a request is one sentence under <code>error</code>.</p>"
        f"{''.join(parts)}</body></html>"
    )


def _of_route(route: Route, address: str, example: dict[str, Any] | None) -> str:
    text = f"<h2>{route.method} {escape(route.path)}</h2><p>{escape(route.summary)}</p>"
    if route.asks is not None:
        text += _fields("Request", route.asks)
    if route.answers is not None:
        text += f"<p>Answer: {escape(_shape(route.answers.model_json_schema()))}</p>"
    return f"{text}<pre>{escape(curl(route, address, example))}</pre>"


def curl(route: Route, address: str, example: dict[str, Any] | None) -> str:
    """Return the command that asks for a route."""
    words: Sequence[str] = ["curl", f"{address}{route.path}"]
    if example is not None:
        words = [*words, "--data", json.dumps(example, ensure_ascii=False)]
    return shlex.join(words)


def _fields(title: str, form: type[BaseModel]) -> str:
    rows = [
        f"<tr><td><code>{name}</code></td><td>{escape(_described(part))}</td><td>{escape(_default(part))}</td></tr>"
        for name, part in form.model_json_schema()["properties"].items()
    ]
    note = escape(" ".join((form.__doc__ or "").split()))
    return f"<p>{title}: {note}</p><table><tr><th>field</th><th>is</th><th>default</th></tr>{''.join(rows)}</table>"


def _described(part: dict[str, Any]) -> str:
    """Return what a field must be; one that may be left out has it a level deeper."""
    found = [one["description"] for one in (part, *part.get("anyOf", ())) if "description" in one]
    return str(found[0])


def _default(part: dict[str, Any]) -> str:
    return "" if part.get("default") is None else json.dumps(part["default"])


def _shape(schema: dict[str, Any]) -> str:
    """Return the form of an answer as JSON with dots, such as ``{"similar": [{"item": ID, ...}, ...]}``."""
    definitions = schema.get("$defs", {})

    def of(part: dict[str, Any]) -> str:
        if "$ref" in part:
            return of(definitions[part["$ref"].rpartition("/")[2]])
        if "anyOf" in part:
            return " or ".join(dict.fromkeys(map(of, part["anyOf"])))
        if part.get("type") == "array":
            return f"[{of(part['items'])}, ...]"
        if part.get("type") == "object":
            members = (f'"{name}": {of(inner)}' for name, inner in part["properties"].items())
            return f"{{{', '.join(members)}}}"
        return {"string": "text", "integer": "number"}.get(str(part.get("type")), str(part.get("type")))

    return of(schema)
