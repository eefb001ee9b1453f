"""The mutation table: whatever happens to a file, the result is right or there is a sentence (docs/reliability.md)."""

import pytest

from tests.support.builders import ROOT
from tests.support.mutations import KINDS, Laboratory, mutations_of


@pytest.fixture(scope="module")
def laboratory(tmp_path_factory):
    return Laboratory(tmp_path_factory.mktemp("laboratory"))


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_damage_is_neither_silent_nor_a_traceback(laboratory, kind):
    outcomes = {mutation: laboratory.outcome(kind, mutation) for mutation in mutations_of(kind)}
    wrong = {mutation: said for mutation, (outcome, said) in outcomes.items() if outcome in ("silent", "traceback")}
    assert not wrong, "\n".join(f"{mutation}: {said}" for mutation, said in wrong.items())


def test_the_page_shows_every_kind():
    page = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
    for kind in KINDS:
        row = next(line for line in page.splitlines() if line.startswith(f"| {kind.name} |"))
        assert row.endswith("| 0 | 0 |"), "neither silent nor a traceback"
