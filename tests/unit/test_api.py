"""The Python interface: the same as the command line, from tables in memory."""

import os
import runpy
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import diffmm_dist
from diffmm_dist import Recommender, UserError, evaluate, export, prepare, train
from diffmm_dist.data.dataset import Dataset
from tests.support.builders import ROOT

EXAMPLES = ROOT / "docs" / "examples"
USERS = [f"u{user}" for user in np.random.default_rng(0).integers(0, 40, 600)]
ITEMS = np.random.default_rng(1).integers(0, 30, 600)
PICTURES = {"item": list(range(30)), **{f"p{place}": np.random.default_rng(place).random(30) for place in range(4)}}
QUICK = {"model": {"name": "lightgcn", "embedding_dim": 8}, "train": {"epochs": 2, "batch_size": 256},
         "graph": {"kernel": "csr"}, "monitoring": {"tensorboard": False}}  # fmt: skip


def as_file(columns, folder):
    pq.write_table(pa.table(columns), folder / f"{len(os.listdir(folder))}.parquet")
    return str(folder / f"{len(os.listdir(folder)) - 1}.parquet")


def as_pandas(columns, folder):
    return pytest.importorskip("pandas", reason="pandas is not installed").DataFrame(columns)


def as_polars(columns, folder):
    return pytest.importorskip("polars", reason="polars is not installed").DataFrame(columns)


def test_a_table_of_any_library_makes_the_same_dataset(tmp_path):
    made = set()
    for number, kind in enumerate((lambda columns, _: columns, lambda columns, _: pa.table(columns), as_file, as_pandas,
                                   as_polars)):  # fmt: skip
        (tmp_path / f"in-{number}").mkdir()
        given = [kind(columns, tmp_path / f"in-{number}") for columns in ({"user": USERS, "item": ITEMS}, PICTURES)]
        notes = prepare(given[0], tmp_path / str(number), features={"visual": given[1]}, seed=7)
        assert "visual: p0 .. p3, 4 columns" in notes
        dataset = Dataset.open(str(tmp_path / str(number)))
        counts = dataset.num_users, dataset.num_items, dataset.manifest.num_interactions("train")
        made.add((counts, dataset.features("visual").sum().item(), tuple(dataset.original_ids("items").to_pylist())))
    assert len(made) == 1


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("api")
    prepare({"user": USERS, "item": ITEMS}, str(folder / "d"), features={"visual": PICTURES})
    result = train(data=str(folder / "d"), run=str(folder / "r"), **QUICK)
    return folder, result


def test_a_run_is_trained_evaluated_and_asked(trained, run_cli):
    folder, result = trained
    assert result["epochs"] == 2
    figures = evaluate(str(folder / "r"), k=[5, 20])
    assert figures["recall@20"] == pytest.approx(result["test"]["recall@20"])
    assert train(data=str(folder / "d"), run=str(folder / "r"), **QUICK) == result  # it has ended
    assert evaluate(folder / "r", k=5) == {name: value for name, value in figures.items() if name.endswith("@5")}
    recommender = export(folder / "r", folder / "b")
    ids, scores = recommender.recommend(["u3", "u1"], k=20)
    status, out, _ = run_cli("recommend", folder / "b", "--users", "u3,u1", "--k", 20)
    assert status == 0
    rows = [line.split() for line in out.splitlines() if line.strip().startswith("u")][1:]
    assert [row[2] for row in rows] == [str(item) for item in np.ma.compressed(ids)]
    assert [row[3] for row in rows] == [f"{score:.4f}" for score in scores[np.isfinite(scores)]]
    command = [sys.executable, EXAMPLES / "ten_lines.py", folder / "b", "u3"]
    plain = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    top = [line.split()[0] for line in plain.stdout.splitlines()][: ids[0].count() if np.ma.isMA(ids) else 20]
    assert top == [str(item) for item in np.ma.compressed(ids[0])]


def test_settings_are_those_of_the_command_line(tmp_path):
    with pytest.raises(UserError, match="model.num_layer.*did you mean.*train.epochs"):
        train("configs/demo.yaml", "train.epochs=0", data="x", run=str(tmp_path / "r"), model={"num_layer": 3})
    with pytest.raises(UserError, match="'run.path' is missing"):
        train(data="x", train={"epochs": np.int64(3), "learning_rate": np.float32(0.5)})
    with pytest.raises(UserError, match="unknown key 'eval.k.a nested'"):
        train(run=str(tmp_path / "r"), data="x", eval={"k": {"a nested": 3}})


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda at: prepare(3, f"{at}/d"), "'interactions' is 'int': give a table"),
        (lambda at: prepare({"user": [1]}, f"{at}/d"), "no column 'item'"),
        (lambda at: prepare({"user": [1], "item": [1, 2]}, f"{at}/d"), "'interactions' is 'dict'"),
        (lambda at: prepare(f"{at}/no.parquet", f"{at}/d"), "no.parquet"),
        (lambda at: prepare({"who": [1], "what": [2]}, f"{at}/d", user="who", itm="what"), "no option 'itm'.*'item'"),
        (lambda at: prepare({"user": [1], "item": [2]}, f"{at}/d", split="rndom"), "rndom"),
        (lambda at: prepare({"user": [1], "item": [2]}, f"{at}/d", valid_share=2), "valid"),
        (lambda at: evaluate(f"{at}/nowhere"), "nowhere"), (lambda at: evaluate(at / "nowhere"), "nowhere"),
        (lambda at: evaluate(at / "r", k=0), "k is 0: it must be whole numbers"),
        (lambda at: evaluate(at / "r", k=["a"]), "k is .*whole numbers"), (lambda at: evaluate(3), "3 is no place"),
        (lambda at: train(at / "no.yaml"), "no.yaml"), (lambda at: Recommender.load(None), "None is no place"),
        (lambda at: export(at / "nowhere", at / "b"), "nowhere"),
        (lambda at: evaluate(f"{at}/r", split="train"), "split is 'train'"),
        (lambda at: export(f"{at}/nowhere", f"{at}/b"), "nowhere"),
        (lambda at: Recommender.load(f"{at}/no"), "is not a complete"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_one_sentence(call, said, tmp_path):
    with pytest.raises(UserError, match=said) as error:
        call(tmp_path)
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


def test_a_table_in_memory_is_called_by_its_name(tmp_path):
    tables = {"user": ["a", "b"], "item": ["x", "y"]}, {"visual": {"item": ["z"], "f0": [1.0], "f1": [2.0]}}
    with pytest.raises(UserError, match=r"^the table 'interactions' has no column 'time'"):
        prepare(tables[0], tmp_path / "d", timestamp="time")
    with pytest.raises(UserError, match=r"^the table 'visual': none of the items"):
        prepare(tables[0], tmp_path / "d", features=tables[1])
    assert not (tmp_path / "d").exists()


def test_names_are_imported_when_they_are_asked_for():
    code = [
        "import sys, diffmm_dist",
        "assert 'pyarrow' not in sys.modules",
        "from diffmm_dist import Recommender, Filter",
        "sys.exit('torch' in sys.modules or 'ray' in sys.modules)",
    ]
    subprocess.run([sys.executable, "-c", "; ".join(code)], cwd=ROOT, check=True, timeout=60)
    assert all(getattr(diffmm_dist, name) for name in diffmm_dist.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'trian'"):
        _ = diffmm_dist.trian


def test_the_example_goes_from_a_table_to_recommendations(tmp_path, monkeypatch, capsys):
    pytest.importorskip("pandas", reason="pandas is not installed")
    monkeypatch.setattr(sys, "argv", ["from_a_data_frame.py", str(tmp_path)])
    runpy.run_path(str(EXAMPLES / "from_a_data_frame.py"), run_name="__main__")
    lines = capsys.readouterr().out.splitlines()
    for beginning in (
        "validation recall@20: 0.", "recommended:", "with rules: [", "like product 3: [",
        "for a visitor who looked at products 3 and 5: [", "new products for person 7: [100",
    ):  # fmt: skip
        assert any(line.startswith(beginning) for line in lines), beginning
