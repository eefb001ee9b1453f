import numpy as np
import pyarrow as pa
import pyarrow.csv as csv
import pyarrow.parquet as parquet
import pytest

from diffmm_dist.errors import UserError
from diffmm_dist.preparation.importers.features import FeatureSource
from tests.support.tables import interactions, load


class TestFeatures:
    def table(self, dtype=np.float32, num_items=20, width=4, *, seed=1):
        rng = np.random.default_rng(seed)
        ids = rng.permutation(num_items)
        return [f"B{i:03}" for i in ids], rng.standard_normal((num_items, width)).astype(dtype)

    def source(self, tmp_path, table, **more):
        parquet.write_table(table, tmp_path / "features.parquet")
        return (FeatureSource("visual", str(tmp_path / "features.parquet"), item="asin", **more),)

    def check(self, dataset, ids, values):
        expected = dict(zip(ids, values.astype(np.float32).tolist(), strict=True))
        for item, row in zip(
            dataset.original_ids("items").to_pylist(), dataset.features("visual").tolist(), strict=True
        ):
            assert row == expected[item]

    @pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
    @pytest.mark.parametrize("kind", ["fixed", "list", "columns"])
    def test_lists_or_columns(self, tmp_path, kind, dtype):
        ids, values = self.table(dtype)
        value_type = pa.from_numpy_dtype(values.dtype)
        if kind == "columns":
            columns = {f"e{n}": values[:, n] for n in range(4)}
        else:
            list_type = pa.list_(value_type, 4) if kind == "fixed" else pa.list_(value_type)
            columns = {"embedding": pa.array(list(values), type=list_type)}
        sources = self.source(tmp_path, pa.table({"asin": ids} | columns))
        dataset, _ = load(interactions(), tmp_path, features=sources)
        assert dataset.manifest.modalities["visual"].dtype == ("float16" if dtype == np.float16 else "float32")
        self.check(dataset, ids, values)

    MISSING = ("no row", "null", "empty list", "null columns", "NaN columns", "no text", "no text of csv")

    @pytest.mark.parametrize("missing", MISSING)
    def test_items_without_features(self, tmp_path, missing):
        ids, values = self.table()
        lost = ids[-1]
        rows = [*values[:-1], {"empty list": []}.get(missing)]
        if missing == "no row":
            ids, rows = ids[:-1], rows[:-1]
        table = pa.table({"asin": ids, "e": pa.array(rows, pa.list_(pa.float32()))})
        if "columns" in missing:
            empty = None if missing.startswith("null") else np.nan
            columns = {f"e{n}": pa.array([*values[:-1, n].tolist(), empty], pa.float32()) for n in range(4)}
            table = pa.table({"asin": ids} | columns)
        if "text" in missing:
            table = pa.table({"asin": ids, "e": [None if row is None else str(row.tolist()) for row in rows]})
        sources = self.source(tmp_path, table)
        if missing == "no text of csv":
            csv.write_csv(table, tmp_path / "features.csv")
            sources = (FeatureSource("visual", str(tmp_path / "features.csv"), item="asin"),)
        with pytest.raises(
            UserError, match=rf"1 items with .* no visual features; .*zero.* or drop.*; one is '{lost}'"
        ):
            load(interactions(), tmp_path, features=sources)
        dataset, notes = load(interactions(), tmp_path, features=sources, without_features="drop")
        assert lost not in dataset.original_ids("items").to_pylist()
        assert "interactions of items without visual features" in notes[-1]
        dataset, notes = load(interactions(), tmp_path, features=sources, without_features="zero")
        place = dataset.original_ids("items").to_pylist().index(lost)
        assert dataset.features("visual")[place].tolist() == [0.0] * 4
        assert dataset.features("visual").ne(0).any(dim=1).sum() == 19
        assert notes[-1] == "1 items have zeros for visual features"

    def test_items_without_interactions(self, tmp_path):
        ids, values = self.table(num_items=33)
        sources = self.source(tmp_path, pa.table({"asin": ids, "e": list(values)}))
        dataset, _ = load(interactions(), tmp_path, features=sources)
        assert dataset.num_items == 20
        dataset, _ = load(interactions(), tmp_path, features=sources, all_items=True)
        assert dataset.original_ids("items").to_pylist() == sorted(ids)
        self.check(dataset, ids, values)

    def test_wrong_values(self, tmp_path):
        ids, values = self.table()
        values[7, 2] = np.nan
        with pytest.raises(UserError, match=rf"the visual features of item '{ids[7]}' hold NaN"):
            load(interactions(), tmp_path, features=self.source(tmp_path, pa.table({"asin": ids, "e": list(values)})))
        rows = [[1.0, 2.0], *([[1.0]] * 19)]
        with pytest.raises(UserError, match=r"lists of 1 and 2 numbers in column 'e'; .* one width"):
            load(interactions(), tmp_path, features=self.source(tmp_path, pa.table({"asin": ids, "e": rows})))
        numbered = pa.table({"asin": np.arange(20), "e": list(values)})
        with pytest.raises(
            UserError, match=r"are whole numbers such as 0, but those of the interactions are text such as 'B000'"
        ):
            load(interactions(), tmp_path, features=self.source(tmp_path, numbered))
        assert not (tmp_path / "out").exists()

    HOLES = ("null in a list", "NaN in a list", "all NaN in a list", "null in columns", "NaN in columns", "text")

    @pytest.mark.parametrize("hole", HOLES)
    @pytest.mark.parametrize("without", ["zero", "drop", "error"])
    def test_a_value_that_is_missing_within_a_vector_is_an_error_that_names_the_item(self, tmp_path, hole, without):
        ids, values = self.table()
        rows = [row.tolist() for row in values]
        empty = np.nan if "NaN" in hole else None
        rows[7] = [empty] * 4 if hole.startswith("all") else [*rows[7][:3], empty]
        table = pa.table({"asin": ids, "e": pa.array(rows, pa.list_(pa.float64()), from_pandas=False)})
        if "columns" in hole:
            columns = {f"e{n}": pa.array([row[n] for row in rows], pa.float64(), from_pandas=False) for n in range(4)}
            table = pa.table({"asin": ids} | columns)
        if hole == "text":
            table = pa.table({"asin": ids, "e": [str(row).replace("None", "null") for row in rows]})
        with pytest.raises(UserError, match=rf"features of item '{ids[7]}' hold NaN or a missing value \(row 8;"):
            load(interactions(), tmp_path, features=self.source(tmp_path, table), without_features=without)

    @pytest.mark.parametrize("far", [False, True])
    def test_an_item_listed_twice(self, tmp_path, far):
        ids, values = self.table()
        filler = 140_000 if far else 0  # into another batch
        ids = [*ids, *(f"other{n}" for n in range(filler)), ids[3], ids[5], ids[5]]
        values = np.concatenate([values, np.ones((filler, 4), np.float32), values[[3, 5, 5]]])
        dataset, notes = load(
            interactions(), tmp_path, features=self.source(tmp_path, pa.table({"asin": ids, "e": list(values)}))
        )
        assert "3 rows of visual features repeat an item with the same values" in notes
        self.check(dataset, ids, values)
        values[-1, 2] += 1
        for order in (1, -1):
            table = pa.table({"asin": ids[::order], "e": list(values[::order])})
            rows = r"6 and \d+" if order == 1 else r"1 and \d+"
            with pytest.raises(
                UserError, match=rf"item '{ids[5]}' has different visual features in rows {rows}; keep one"
            ):
                load(interactions(), tmp_path, features=self.source(tmp_path, table), without_features="zero")

    def test_an_item_listed_with_and_without_a_vector_has_it(self, tmp_path):
        ids, values = self.table()
        table = pa.table({"asin": [*ids, *ids], "e": [*([None] * 20), *values]})
        dataset, notes = load(interactions(), tmp_path, features=self.source(tmp_path, table))
        self.check(dataset, ids, values)
        assert not any("features repeat" in note for note in notes)

    def test_all_items_lack_nothing_in_silence(self, tmp_path):
        ids, values = self.table(num_items=24)
        parquet.write_table(pa.table({"asin": ids, "e": list(values)}), tmp_path / "a.parquet")
        parquet.write_table(pa.table({"asin": ids[:-1], "e": list(values[:-1])}), tmp_path / "b.parquet")
        sources = tuple(FeatureSource(name, str(tmp_path / f"{name}.parquet"), item="asin") for name in ("a", "b"))
        with pytest.raises(UserError, match=rf"1 items have no b features; .*; one is '{ids[-1]}'"):
            load(interactions(), tmp_path, features=sources, all_items=True)
        dataset, _ = load(interactions(), tmp_path, features=sources, all_items=True, without_features="drop")
        assert dataset.original_ids("items").to_pylist() == sorted(ids[:-1])
        dataset, notes = load(interactions(), tmp_path, features=sources, all_items=True, without_features="zero")
        assert (dataset.num_items, notes[-1]) == (24, "1 items have zeros for b features")

    def test_every_vector_is_missing(self, tmp_path):
        table = pa.table({"asin": self.table()[0], "e": pa.array([None] * 20, pa.list_(pa.float32()))})
        for without in ("zero", "drop", "error"):
            with pytest.raises(UserError, match=r"every item lacks its visual features"):
                load(interactions(), tmp_path, features=self.source(tmp_path, table), without_features=without)

    def test_widths_that_differ_between_batches(self, tmp_path):
        ids, values = self.table()
        ids = [*ids, *(f"other{n}" for n in range(140_000)), ids[0]]
        rows = [*values.tolist(), *([None] * 140_000), [1.0]]
        table = pa.table({"asin": ids, "e": pa.array(rows, pa.list_(pa.float32()))})
        with pytest.raises(UserError, match=r"lists of 1 and 4 numbers in column 'e'"):
            load(interactions(), tmp_path, features=self.source(tmp_path, table))
