import datetime

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from diffmm_dist.errors import UserError
from diffmm_dist.preparation.importers.cleaning import InteractionColumns
from diffmm_dist.preparation.importers.splits import SplitRule
from tests.support.tables import all_pairs, expected_pairs, interactions, load, pairs

RNG = np.random.default_rng(5)


class TestSplits:
    def of_user(self, dataset, split):
        found = {}
        for user, item in pairs(dataset, split):
            found.setdefault(user, set()).add(item)
        return found

    def test_random_takes_a_share_of_every_user(self, tmp_path):
        table = interactions(20, 60, 900)
        dataset, _ = load(table, tmp_path, rule=SplitRule("random", 0.2, 0.1, seed=3))
        parts = {split: self.of_user(dataset, split) for split in ("train", "valid", "test")}
        for user in parts["train"]:
            sizes = [len(parts[split].get(user, ())) for split in ("train", "valid", "test")]
            total = sum(sizes)
            assert sizes[1:] == [int(total * 0.2 + 0.5), int(total * 0.1 + 0.5)]
        tested = pairs(dataset, "test")
        other, _ = load(table, tmp_path, rule=SplitRule("random", 0.2, 0.1, seed=4))
        assert pairs(other, "test") != tested
        shuffled = table.take(np.random.default_rng(0).permutation(900))
        again, _ = load(shuffled, tmp_path, rule=SplitRule("random", 0.2, 0.1, seed=3))
        assert again.manifest.fingerprint == dataset.manifest.fingerprint

    @settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(valid=st.floats(0, 0.49), test=st.floats(0.25, 0.5), seed=st.integers(0, 99))
    def test_every_user_keeps_a_training_item(self, tmp_path, valid, test, seed):
        table = interactions(12, 9, 60, seed=seed)
        dataset, _ = load(table, tmp_path, rule=SplitRule("random", valid, test, seed=seed))
        assert {user for user, _ in pairs(dataset, "train")} == {user for user, _ in expected_pairs(table)}
        assert sorted(all_pairs(dataset)) == expected_pairs(table)

    def test_leave_last_out(self, tmp_path):
        table = interactions()
        columns = InteractionColumns("who", "what", timestamp="when")
        dataset, _ = load(table, tmp_path, columns=columns, rule=SplitRule("leave-last-out"))
        first = {}
        for row in table.to_pylist():
            key = (row["who"], row["what"])
            first[key] = min(first.get(key, np.inf), row["when"])
        parts = {split: self.of_user(dataset, split) for split in ("train", "valid", "test")}
        for user in {key[0] for key in first}:
            items = sorted((item for who, item in first if who == user), key=lambda item: first[user, item])
            if len(items) < 3:
                assert parts["train"][user] == set(items)
                continue
            assert (parts["test"][user], parts["valid"][user]) == ({items[-1]}, {items[-2]})
            assert parts["train"][user] == set(items[:-2])

    @pytest.mark.parametrize("as_times", [False, True])
    def test_time(self, tmp_path, as_times):
        table = interactions()
        if as_times:
            times = [datetime.datetime(2024, 1, 1) + datetime.timedelta(minutes=t) for t in table["when"].to_pylist()]
            table = table.set_column(2, "when", pa.array(times, pa.timestamp("ns", "UTC")))
        columns = InteractionColumns("who", "what", timestamp="when")
        dataset, _ = load(table, tmp_path, columns=columns, rule=SplitRule("time", 0.25, 0.25))
        first = {}
        for row in table.to_pylist():
            key = (row["who"], row["what"])
            first[key] = min(first.get(key, row["when"]), row["when"])
        latest = [max(first[pair] for pair in pairs(dataset, split)) for split in ("train", "valid", "test")]
        earliest = [min(first[pair] for pair in pairs(dataset, split)) for split in ("train", "valid", "test")]
        assert latest[0] < earliest[1] <= latest[1] < earliest[2]
        assert len(pairs(dataset, "test")) == pytest.approx(len(first) / 4, abs=2)

    def test_columns(self, tmp_path):
        table = interactions()
        names = RNG.choice(["fit", "dev", "eval"], table.num_rows).tolist()
        rule = SplitRule("column", values=("fit", "dev", "eval"))
        columns = InteractionColumns("who", "what", split="part")
        dataset, _ = load(table.append_column("part", pa.array(names)), tmp_path, columns=columns, rule=rule)
        first = {}
        for row, name in zip(table.to_pylist(), names, strict=True):
            key = (row["who"], row["what"])
            first[key] = min(first.get(key, 3), rule.values.index(name))
        for index, split in enumerate(("train", "valid", "test")):
            assert sorted(pairs(dataset, split)) == sorted(key for key, value in first.items() if value == index)
        with pytest.raises(
            UserError, match=r"column 'part' holds 'dev', which is none of fit, valid, eval; .*--split-values"
        ):
            rule = SplitRule("column", values=("fit", "valid", "eval"))
            load(table.append_column("part", pa.array(["dev"] * table.num_rows)), tmp_path, columns=columns, rule=rule)

    def test_an_empty_split(self, tmp_path):
        with pytest.raises(UserError, match=r"the test split is empty"):
            load(interactions(), tmp_path, rule=SplitRule("random", 0.1, 0.0))
        _, notes = load(interactions(), tmp_path, rule=SplitRule("random", 0.0, 0.1))
        assert "the validation split is empty" in notes[-1]


class TestTies:
    """Equal times, which nothing but chance may decide."""

    COLUMNS = InteractionColumns("who", "what", timestamp="when")
    LAST = SplitRule("leave-last-out")

    def one_day(self, num_users, num_items, per_user, *, strings=False):
        rng = np.random.default_rng(1)
        items = np.concatenate([rng.choice(num_items, per_user, replace=False) for _ in range(num_users)])
        users = np.repeat(np.arange(num_users), per_user)
        names = [f"i{item:04}" for item in items] if strings else items
        return pa.table({"who": users, "what": names, "when": pa.array([7] * len(users), pa.int32())})

    @pytest.mark.parametrize("strings", [False, True])
    def test_equal_last_times_are_broken_without_a_bias_to_any_item(self, tmp_path, strings):
        table = self.one_day(1000, 200, 20, strings=strings)
        dataset, notes = load(table, tmp_path, columns=self.COLUMNS, rule=self.LAST)
        numbers = {item: number for number, item in enumerate(dataset.original_ids("items").to_pylist())}
        for split in ("test", "valid"):
            found = np.array([numbers[item] for _, item in pairs(dataset, split)])
            assert len(found) == 1000
            assert abs(found.mean() - 99.5) < 4 * 57.7 / 1000**0.5  # four standard errors of a uniform draw
        assert "1,000 users had equal times where validation or test begins; --seed decided between them" in notes

    def test_a_score_that_only_knows_item_numbers_gets_no_recall_beyond_chance(self, tmp_path):
        dataset, _ = load(self.one_day(1000, 200, 20), tmp_path, columns=self.COLUMNS, rule=self.LAST)
        train = dataset.interactions("train")
        for score in (-np.arange(200.0), np.arange(200.0)):
            hits = 0
            for user, item in pairs(dataset, "test"):
                ranked = score.copy()
                ranked[train.indices[train.row_ids == user].numpy()] = -np.inf
                hits += item in np.argsort(-ranked)[:20]
            assert hits / 1000 < 0.16  # chance is 20 of 182

    def test_the_seed_decides_and_the_order_of_rows_does_not(self, tmp_path):
        table = self.one_day(50, 40, 10)
        first, _ = load(table, tmp_path, columns=self.COLUMNS, rule=self.LAST)
        tested = pairs(first, "test")
        shuffled = table.take(np.random.default_rng(0).permutation(len(table)))
        again, _ = load(shuffled, tmp_path, columns=self.COLUMNS, rule=self.LAST)
        assert again.manifest.fingerprint == first.manifest.fingerprint
        other, _ = load(table, tmp_path, columns=self.COLUMNS, rule=SplitRule("leave-last-out", seed=8))
        assert pairs(other, "test") != tested

    def test_only_users_whose_tie_decided_something_are_counted(self, tmp_path):
        rows = {
            "no tie": [1, 2, 3, 4],
            "a tie among training items": [1, 1, 3, 4],
            "a tie of validation and training": [1, 3, 3, 4],
            "a tie of test and validation": [1, 2, 4, 4],
            "too few": [4, 4],
        }
        columns = [(user, f"i{place}", time) for user, times in rows.items() for place, time in enumerate(times)]
        table = pa.table(dict(zip(("who", "what", "when"), zip(*columns, strict=True), strict=True)))
        _, notes = load(table, tmp_path, columns=self.COLUMNS, rule=self.LAST)
        assert notes == ("2 users had equal times where validation or test begins; --seed decided between them",)

    def test_a_cut_in_time_that_falls_into_a_large_tie_is_told(self, tmp_path):
        table = interactions()
        days = pa.array([min(when // 100, 13) for when in table["when"].to_pylist()])
        table = table.set_column(2, "when", days)
        _, notes = load(table, tmp_path, columns=self.COLUMNS, rule=SplitRule("time", 0.2, 0.4))
        assert any(note.startswith("the splits are ") and "of the same time stay together" in note for note in notes)
        with pytest.raises(UserError, match=r"test split is empty \(.*; interactions of the same time stay together\)"):
            load(table, tmp_path, columns=self.COLUMNS, rule=SplitRule("time", 0.1, 0.1))
        _, notes = load(interactions(), tmp_path, columns=self.COLUMNS, rule=SplitRule("time"))
        assert not any(note.startswith("the splits are ") for note in notes)


class TestRepeatedPairs:
    def test_a_pair_in_several_splits_is_told_and_counts_in_the_first(self, tmp_path):
        table = pa.table(
            {
                "who": ["a", "a", "a", "b", "b", "b", "b"],
                "what": ["x", "x", "y", "x", "y", "z", "z"],
                "part": ["test", "train", "train", "train", "valid", "test", "test"],
            }
        )
        columns = InteractionColumns("who", "what", split="part")
        for order in (range(7), range(6, -1, -1)):
            dataset, notes = load(table.take(list(order)), tmp_path, columns=columns, rule=SplitRule("column"))
            assert pairs(dataset, "test") == [("b", "z")]
            assert ("a", "x") in pairs(dataset, "train")
            assert (
                "1 pairs of user and item stand in several splits; each counts in the first of train, valid and test"
            ) in notes

    def test_a_pair_with_a_high_and_a_low_rating_counts_at_the_time_of_the_high_one(self, tmp_path):
        table = pa.table(
            {
                "who": ["a"] * 4,
                "what": ["x", "y", "z", "x"],
                "stars": [1, 5, 5, 5],
                "when": [1, 2, 3, 4],
            }
        )
        columns = InteractionColumns("who", "what", timestamp="when", rating="stars")
        rule = SplitRule("leave-last-out")
        dataset, notes = load(table, tmp_path, columns=columns, rule=rule, min_rating=4)
        assert pairs(dataset, "test") == [("a", "x")]
        assert "dropped 1 rows with a rating below 4, or none" in notes
        assert any(note.startswith("1 pairs of user and item have a rating below the lowest") for note in notes)


@pytest.mark.parametrize("method", ["random", "leave-last-out", "time", "column"])
def test_neither_the_order_of_rows_nor_their_files_decides_anything(tmp_path, method):
    table = interactions(num_users=20, num_items=15, count=600)
    table = table.set_column(2, "when", pa.array([when % 7 for when in table["when"].to_pylist()]))
    table = table.append_column("part", pa.array(RNG.choice(["train", "train", "valid", "test"], len(table))))
    columns = InteractionColumns(
        "who", "what", timestamp="when", rating="stars", split="part" if method == "column" else None
    )
    settings = {"columns": columns, "rule": SplitRule(method, 0.2, 0.2), "min_rating": 2, "k_core": 3}
    first, notes = load(table, tmp_path, **settings)
    for seed in range(3):
        shuffled = table.take(np.random.default_rng(seed).permutation(len(table)))
        again, other_notes = load(shuffled, tmp_path, kind=("parquet", "csv", "arrow")[seed], **settings)
        assert again.manifest.fingerprint == first.manifest.fingerprint
        assert other_notes == notes
