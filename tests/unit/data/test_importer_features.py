import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from diffmm_dist.data.importers.features import FeatureSource
from diffmm_dist.errors import UserError
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

    def test_chosen_columns(self, tmp_path):
        ids, values = self.table()
        columns = {f"e{n}": values[:, n] for n in range(4)} | {"title": ids}
        table = pa.table({"asin": ids} | columns)
        with pytest.raises(UserError, match=r"found e0: float, .*title: string; choose with --feature-columns visual="):
            load(interactions(), tmp_path, features=self.source(tmp_path, table))
        dataset, _ = load(interactions(), tmp_path, features=self.source(tmp_path, table, columns="e?"))
        self.check(dataset, ids, values)

    @pytest.mark.parametrize("null_row", [False, True])
    def test_items_without_features(self, tmp_path, null_row):
        ids, values = self.table()
        rows = list(values)
        if null_row:
            rows[-1] = None
        else:
            ids, rows = ids[:-1], rows[:-1]
        lost = self.table()[0][-1]
        sources = self.source(tmp_path, pa.table({"asin": ids, "e": pa.array(rows, pa.list_(pa.float32()))}))
        if not null_row:
            with pytest.raises(UserError, match=r"1 items with interactions have no visual features; .*zero.* or drop"):
                load(interactions(), tmp_path, features=sources)
            dataset, notes = load(interactions(), tmp_path, features=sources, without_features="drop")
            assert lost not in dataset.original_ids("items").to_pylist()
            assert "interactions of items without visual features" in notes[-1]
        dataset, notes = load(interactions(), tmp_path, features=sources, without_features="zero")
        place = dataset.original_ids("items").to_pylist().index(lost)
        assert dataset.features("visual")[place].tolist() == [0.0] * 4
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
        with pytest.raises(UserError, match=r"has item ids of type int64 but the interactions have string"):
            load(interactions(), tmp_path, features=self.source(tmp_path, numbered))
        assert not (tmp_path / "out").exists()
