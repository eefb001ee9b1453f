"""Records with checksums of their own contents."""

import json

import pytest
from typing_extensions import TypedDict

from diffmm_dist.errors import DamagedError
from diffmm_dist.records import check_seal, parse_record, run_of_text, sealed, sealed_text, unsealed
from tests.support.builders import RUN_ID

RECORD = {"name": "é", "values": [1, 2.5, 1e-300, None], "inner": {"b": 1, "a": True}}


class Record(TypedDict):
    name: str
    values: list[float | None]


def test_a_sealed_record_is_what_it_was():
    text = json.dumps(sealed(RECORD))
    check_seal(json.loads(text))
    assert unsealed(json.loads(text)) == RECORD


@pytest.mark.parametrize("options", [{"indent": 7}, {"sort_keys": True}, {"ensure_ascii": False}])
def test_how_it_is_written_does_not_count(options):
    check_seal(json.loads(json.dumps(sealed(RECORD), **options)))


@pytest.mark.parametrize(
    "change", [{"name": "e"}, {"values": [1, 2.5, 0.0, None]}, {"inner": {"b": 1}}, {"more": 1}, {"sha256": None}]
)
def test_any_other_contents_are_refused(change):
    with pytest.raises(ValueError, match="its contents do not match its checksum"):
        check_seal(sealed(RECORD) | change)
    with pytest.raises(DamagedError, match="here is damaged: its contents do not match its checksum; do that"):
        parse_record("here", json.dumps(sealed(RECORD) | change).encode(), Record, remedy="do that")


def test_a_record_without_a_checksum_is_read():
    assert parse_record("here", json.dumps(RECORD).encode(), Record, remedy="do that")["name"] == "é"


def test_a_record_that_always_had_a_checksum_is_not_read_without():
    with pytest.raises(DamagedError, match="here is damaged: it has no checksum; do that"):
        parse_record("here", json.dumps(RECORD).encode(), Record, remedy="do that", must_be_sealed=True)


def test_what_has_another_form_is_called_that_first():
    with pytest.raises(DamagedError, match="here is damaged at 'values'"):
        parse_record("here", json.dumps(sealed(RECORD) | {"values": "many"}).encode(), Record, remedy="do that")


@pytest.mark.parametrize("change", [lambda t: t[:-30], lambda t: t.replace("1", "2", 1), lambda t: t[1:], lambda t: ""])
def test_text_that_was_changed(change):
    text = sealed_text("a: 1\nb: 'é'\n", run=RUN_ID)
    assert run_of_text(text) == RUN_ID
    with pytest.raises(ValueError, match="its last line is not its checksum"):
        run_of_text(change(text))
