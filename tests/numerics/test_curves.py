"""Twenty steps of every model that trains give the committed losses; on two workers in tests/distributed."""

from diffmm_dist.models.registry import SETTINGS, entry_of
from tests.support import curves


def test_every_curve_is_the_committed_one(tmp_path):
    curves.check_curves(1, tmp_path)


def test_there_is_a_curve_of_twenty_steps_for_every_model_that_trains():
    trained = {name for name in SETTINGS if entry_of(name).measures.work}
    assert trained == {case["model"]["name"] for case in curves.CASES.values()}
    assert {path.stem for path in curves.FOLDER.glob("*.json")} == set(curves.CASES)
    for name in curves.CASES:
        assert {len(values) for values in curves.committed(name).values()} == {curves.NUM_STEPS}
