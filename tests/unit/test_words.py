"""Damage of what was read, told without the validator's words."""

import json

import pytest

from diffmm_dist import storage
from diffmm_dist.data.dataset import Dataset
from diffmm_dist.errors import UserError
from diffmm_dist.runs.run_records import Identity, Result
from tests.support.builders import RUN_ID, synthetic_dataset
from tests.unit.config.test_mistakes import JARGON

RESULT = {
    "run": RUN_ID,
    "protocol": "validation", "seed": 1, "best_epoch": 0, "epochs": 1, "valid": {}, "test": {"recall@20": 0.1},
    "seconds_per_epoch": 1.0, "seconds_per_phase": {}, "peak_rss_gib": 1.0, "config": {},
}  # fmt: skip
IDENTITY = {"run": RUN_ID, "dataset": "f", "version": "1", "kernel": "csr"}


@pytest.mark.parametrize(
    ("kind", "good", "changes", "part"),
    [
        (Result, RESULT, {"seed": None}, "is damaged at 'seed': it is null and must be a whole number"),
        (Result, RESULT, {"test": {"recall@20": "x"}}, "at 'test.recall@20': it is 'x' and must be a finite number"),
        (Result, RESULT, {"test": [1]}, "at 'test': it is [1] and must be a map from names to a finite number"),
        (Identity, IDENTITY, {"kernel": "cuda"}, "at 'kernel': it is 'cuda' and must be 'csr' or 'dgl'"),
        (Identity, IDENTITY, {"version": 1}, "at 'version': it is 1 and must be text"),
    ],
)
def test_damaged_records_are_told_in_plain_words(tmp_path, kind, good, changes, part):
    path = tmp_path / "record.json"
    path.write_text(json.dumps({**good, **changes}))
    with pytest.raises(UserError) as error:
        storage.read_record(str(path), kind, remedy="make it again")
    assert part in str(error.value)
    assert not JARGON.search(str(error.value))


@pytest.mark.parametrize("whole", ["3", "null", "[]", '"x"'])
def test_records_that_are_no_map_are_told_in_plain_words(tmp_path, whole):
    path = tmp_path / "record.json"
    path.write_text(whole)
    with pytest.raises(
        UserError, match="damaged at 'its top'.* must be a map with the keys format, run, dataset, version"
    ) as error:
        storage.read_record(str(path), Identity, remedy="make it again")
    assert not JARGON.search(str(error.value))


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("num_users",), "x"),
        (("num_users",), -1),
        (("interactions", "train", 0, "rows"), None),
        (("interactions", "train", 0, "path"), "../../etc/passwd"),
        (("interactions", "train"), 3),
        (("modalities", "visual"), []),
        (("modalities", "visual", "dtype"), "float8"),
        (("user_ids", "files"), {"a": 1}),
        (("partition",), 7),
        (("interactions",), {"dev": []}),
    ],
)
def test_damaged_manifests_are_told_in_plain_words(tmp_path, place, value):
    path = synthetic_dataset(tmp_path / "d")
    manifest = json.loads((tmp_path / "d" / "manifest.json").read_text())
    part = manifest
    for name in place[:-1]:
        part = part[name]
    part[place[-1]] = value
    (tmp_path / "d" / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=f"is damaged at '{place[0]}.* prepare the dataset again") as error:
        Dataset.open(path)
    assert not JARGON.search(str(error.value))
