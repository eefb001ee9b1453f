"""The options of `prepare tables`: what they mean, and that all mistakes are told at once."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from diffmm_dist.data.dataset import Dataset
from tests.support.tables import interactions


@pytest.fixture
def prepare(run_cli, tmp_path):
    parquet.write_table(interactions(), tmp_path / "in.parquet")
    command = ["prepare", "tables", tmp_path / "in.parquet", "--out", tmp_path / "out"]

    def run(*options, user="who", item="what"):
        return run_cli(*command, "--user", user, "--item", item, *options)

    return run


def features(place, *, item="asin", names=("e0", "e1")):
    ids = sorted(set(interactions()["what"].to_pylist()))
    columns = {name: np.arange(20, dtype=np.float32) + n for n, name in enumerate(names)}
    parquet.write_table(pa.table({item: ids} | columns), place)
    return place


def only_line(outcome):
    status, _, err = outcome
    assert status == 1
    assert len(err.splitlines()) == 1, err
    return err


def test_all_mistakes_are_told_at_once(prepare, tmp_path):
    line = only_line(
        prepare(
            "--split", "leave-last", "--split-values", "a,b", "--without-features", "none", "--min-rating", "nan",
            "--rating", "star", "--valid-share", "nan", "--k-core", 10**30, "--memory-gib", "inf",
            "--timestamp-format", "%d", "--features", "visual",
            "--features", f"text={features(tmp_path / 'f.parquet')}",
            "--features", f"sound={tmp_path / 'none.parquet'}", "--feature-columns", "smell=x*",
            "--feature-item", "smell=y",
        )
    )  # fmt: skip
    for part in (
        "--split leave-last is none of random, leave-last-out",
        "--split-values a,b must be three values",
        "--without-features none is none of error, zero, drop",
        "--min-rating nan must be finite",
        "has no column 'star'; did you mean 'stars'?",
        "--valid-share and --test-share must be at least 0 and below 1 together",
        "--k-core must be between 0 and",
        "--memory-gib must be",
        "--timestamp-format needs --timestamp",
        "--features visual must be a name and a value",
        "f.parquet has no column 'what'",
        "none.parquet does not exist",
        "--feature-columns names smell, which --features does not",
        "--feature-item names smell, which --features does not",
    ):
        assert part in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "names"),
    [
        (["--timestamp", "what"], "--item and --timestamp both name column 'what'"),
        (["--rating", "who"], "--user and --rating both name column 'who'"),
        (["--timestamp", "when", "--rating", "when"], "--timestamp and --rating both name column 'when'"),
        (["--split", "column", "--split-column", "who"], "--user and --split-column both name column 'who'"),
    ],
)
def test_one_column_for_two_purposes_is_named(prepare, options, names):
    assert names in only_line(prepare(*options))
    assert "--user and --item both name column 'who'" in only_line(prepare(item="who"))


@pytest.mark.parametrize("values", ["a,b", "a,b,c,d", "a,a,b", "1,1.0,2", "a,,b", "True,true,x"])
def test_split_values_that_are_not_three_different_ones(prepare, values):
    assert "must be three values that differ" in only_line(prepare("--split-values", values))


@pytest.mark.parametrize("shares", [("nan", "0.1"), ("0.1", "nan"), ("inf", "-inf"), ("-0.1", "0.1"), ("0.5", "0.5")])
def test_shares_that_cannot_be(prepare, shares):
    line = only_line(prepare("--valid-share", shares[0], "--test-share", shares[1]))
    assert "must be at least 0 and below 1 together" in line


@pytest.mark.parametrize("k", [2**31, 10**19, 10**40])
def test_a_core_that_is_no_count(prepare, k):
    assert "--k-core must be between 0 and" in only_line(prepare("--k-core", k))
    assert "leaves no interaction" in only_line(prepare("--k-core", 2**31 - 1))


def test_a_seed_of_any_size(prepare, tmp_path):
    fingerprints = []
    for seed in (10**40, 10**40 + 1):
        status, _, err = prepare("--seed", seed, "--force")
        assert status == 0, err
        fingerprints.append(Dataset.open(str(tmp_path / "out")).manifest.fingerprint)
    assert len(set(fingerprints)) == 2


def test_the_item_column_of_every_modality(prepare, tmp_path):
    first = features(tmp_path / "a.parquet", item="asin")
    second = features(tmp_path / "b.parquet", item="sku", names=("d0", "d1"))
    both = ["--features", f"visual={first}", "--features", f"textual={second}"]
    status, out, err = prepare(*both, "--feature-item", "visual=asin", "--feature-item", "sku")
    assert status == 0, err
    assert "note: visual: e0, e1, 2 columns" in out
    line = only_line(prepare(*both, "--feature-item", "asin", "--feature-item", "sku", "--force"))
    assert "--feature-item gives asin and sku for all tables" in line
    line = only_line(prepare(*both, "--feature-item", "visual=asin", "--force"))
    assert "b.parquet has no column 'what'" in line


def test_an_array_has_no_columns_to_name(prepare, tmp_path):
    np.save(tmp_path / "rows.npy", np.ones((20, 2)))
    for option in ("--feature-item", "--feature-columns"):
        line = only_line(prepare("--features", f"visual={tmp_path / 'rows.npy'}", option, "visual=x"))
        assert f"{option} names visual, but a .npy file has no columns" in line


def test_what_is_used_and_dropped_is_printed(prepare, tmp_path):
    source = features(tmp_path / "f.parquet", names=("emb_0", "emb_1", "emb_2", "price"))
    status, out, err = prepare("--features", f"visual={source}", "--feature-item", "asin")
    assert status == 0, err
    assert "note: visual: emb_0 .. emb_2, 3 columns; not used: price" in out
    assert "rows that repeat a user and an item" in out
