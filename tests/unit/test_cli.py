"""The commands as users type them, and above all what they do wrong: one sentence, a status, nothing half-written."""

import json
import pickle
import re
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import scipy.sparse as sp

from diffmm_dist.data.dataset import Dataset
from diffmm_dist.data.writer import dataset_writer
from tests.support.builders import metrics_of, published_folder, synthetic_dataset, write_config
from tests.support.damage import forge_config
from tests.support.evil import evil_pickle


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return synthetic_dataset(tmp_path_factory.mktemp("data") / "d")


@pytest.fixture
def config(tmp_path, dataset, monkeypatch):
    for name in ("AWS_PROFILE", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    return write_config(
        tmp_path / "config.yaml", data={"path": dataset}, run={"path": str(tmp_path / "run")}, train={"epochs": 2}
    )


def one_sentence(outcome, *parts):
    """The command failed, with a single line on standard error that says all of this."""
    status, _, err = outcome
    assert status == 1
    progress = (
        r"a worker is estimated|propagation kernel|epoch |resuming |\d+ threads?: |\w+\.\w+ \d+ (is clipped|ranks)"
    )
    lines = [line for line in err.splitlines() if not re.match(progress, line)]
    assert len(lines) == 1, err
    assert lines[0].startswith("error: ")
    for part in parts:
        assert part in lines[0]


def test_a_whole_session(run_cli, tmp_path, config):
    status, out, err = run_cli("train", "--config", config, "graph.kernel=auto")
    assert status == 0
    assert "recall" in out
    assert "tensorboard --logdir" in out
    assert "propagation kernel: " in err
    status, out, _ = run_cli("evaluate", tmp_path / "run", "--k", "5,20,40")
    assert (status, "@40" in out) == (0, True)
    _, out, _ = run_cli("compare", tmp_path / "run")
    assert "diffmm" in out
    assert run_cli("export", tmp_path / "run", "--out", tmp_path / "bundle")[0] == 0
    recs = tmp_path / "recs.parquet"
    _, out, _ = run_cli("recommend", tmp_path / "bundle", "--all", "--k", "7", "--out", recs)
    assert "420 recommendations to 60 users" in out
    table = pq.read_table(recs)
    assert table.column_names == ["user", "rank", "item", "score"]
    assert table.num_rows == 420
    _, out, _ = run_cli("recommend", tmp_path / "bundle", "--users", "user_3,user_0", "--k", "2")
    assert [line.split()[:2] for line in out.splitlines() if "user_" in line] == [
        ["user_3", "1"], ["user_3", "2"], ["user_0", "1"], ["user_0", "2"],
    ]  # fmt: skip


def test_include_seen_recommends_known_items(run_cli, tmp_path, config, dataset):
    run_cli("train", "--config", config, "model.name=popularity")
    run_cli("export", tmp_path / "run", "--out", tmp_path / "bundle")
    known = Dataset.open(dataset).interactions("train").dense()
    for flags, some_known in (((), False), (("--include-seen",), True)):
        run_cli("recommend", tmp_path / "bundle", "--all", "--k", "40", "--out", tmp_path / "r.parquet", *flags)
        rows = pq.read_table(tmp_path / "r.parquet").to_pylist()
        shown = any(known[int(row["user"][5:]), int(row["item"][5:])] for row in rows)
        assert shown == some_known


def test_prepare_and_inspect(run_cli, tmp_path):
    folder = published_folder(tmp_path / "raw")
    status, out, _ = run_cli("prepare", "diffmm", folder, "--out", tmp_path / "d")
    assert status == 0
    assert "left out" in out
    assert "text_feat.npy is not there" in out
    _, out, _ = run_cli("inspect", tmp_path / "d", "--verify")
    for part in ("users", "12", "visual", "5 wide", "all match", "without training interactions", "density"):
        assert part in out
    status, out, _ = run_cli(
        "prepare", "synthetic", "--out", tmp_path / "s", "--users", 30, "--items", 20, "--interactions", 200,
        "--modality", "visual:3", "--modality", "acoustic:2",
    )  # fmt: skip
    assert "acoustic" in out
    assert Dataset.open(str(tmp_path / "s")).manifest.modalities["acoustic"].width == 2


def test_prepare_tables(run_cli, tmp_path):
    rows = [f"u{user},{item},{user + item}" for user in range(8) for item in range(9) if (user * item) % 3 != 1]
    (tmp_path / "in.csv").write_text("\n".join(["user,item,stars", *rows]) + "\n")
    features = [f"{item},{item / 10},{1 - item / 10},t{item}" for item in range(11)]
    (tmp_path / "f.csv").write_text("\n".join(["id,e0,e1,title", *features]) + "\n")
    command = ["prepare", "tables", tmp_path / "in.csv", "--out", tmp_path / "d", "--user", "user", "--item", "item"]
    more = ["--rating", "stars", "--min-rating", 3, "--k-core", 2, "--features", f"visual={tmp_path / 'f.csv'}",
            "--feature-item", "id", "--feature-columns", "visual=e?", "--all-items", "--valid-share", 0.2]  # fmt: skip
    status, out, _ = run_cli(*command, *more)
    assert status == 0
    assert "with a rating below 3.0, or none" in out
    dataset = Dataset.open(str(tmp_path / "d"))
    assert (dataset.num_users, dataset.num_items) == (8, 11)
    assert dataset.features("visual")[3].tolist() == pytest.approx([0.3, 0.7])
    one_sentence(run_cli(*command, "--split", "randm"), "--split randm is none of", "did you mean 'random'?")
    one_sentence(run_cli(*command, "--split-values", "a,b"), "must be three values")
    one_sentence(run_cli(*command, "--features", "visual"), "such as visual=...")
    one_sentence(run_cli(*command, "--features", "v=a.csv", "--features", "v=b.csv"), "gives 'v' twice")
    one_sentence(run_cli(*command, "--feature-columns", "visual=e?"), "names visual, which --features does not")
    one_sentence(run_cli(*command), "already exists", "--force")


def test_prepare_mmrec(run_cli, tmp_path):
    (tmp_path / "baby").mkdir()
    rows = [f"{user}\t{item}\t{(user + item) % 3}" for user in range(5) for item in range(6)]
    (tmp_path / "baby" / "baby.inter").write_text("\n".join(["userID\titemID\tx_label", *rows]) + "\n")
    status, out, _ = run_cli("prepare", "mmrec", tmp_path / "baby", "--out", tmp_path / "d")
    assert status == 0
    assert "image_feat.npy is not there" in out


def test_prepare_never_overwrites_without_force(run_cli, tmp_path, dataset):
    arguments = ("prepare", "synthetic", "--users", 30, "--items", 20, "--interactions", 200, "--out")
    one_sentence(run_cli(*arguments, dataset), "already exists", "--force")
    assert Dataset.open(dataset).num_users == 60
    assert run_cli(*arguments, tmp_path / "new")[0] == 0
    assert run_cli(*arguments, tmp_path / "new", "--force")[0] == 0


def test_config_commands(run_cli, config):
    _, out, _ = run_cli("config", "show", "--config", config, "model.embedding_dim=4")
    assert "embedding_dim: 4" in out
    _, out, _ = run_cli("config", "reference")
    assert "### model.diffusion, for diffmm" in out


BAD_CONFIGS = {
    "misspelt": (["model.embeding_dim=3"], "did you mean 'embedding_dim'"),
    "several": (["model.embeding_dim=3", "train.epochs=0", "x.y=1"], "embeding_dim", "train.epochs", "unknown key 'x'"),
    "out of range": (["model.diffusion.edge_keep_prob=2"], "'model.diffusion.edge_keep_prob' is 2"),
    "no dataset": (["data.path=/nowhere"], "dataset /nowhere does not exist", "`prepare`"),
    "unknown modality": (["data.modalities=[visul]"], "no modality 'visul'; did you mean 'visual'?"),
    "projection": (["model.modality_projection={visual: matrix}"], "name each of them once"),
    "no GPU": (["cluster.device=cuda"], "torch sees no GPU"),
    "cannot write": (["run.path=/proc/run"], "/proc/run cannot be written"),
    "s3 run": (["run.path=s3://bucket/run"], "s3://bucket/run", "set AWS_ACCESS_KEY_ID"),
}


@pytest.mark.parametrize("case", BAD_CONFIGS)
def test_bad_configurations(run_cli, tmp_path, config, case):
    overrides, *parts = BAD_CONFIGS[case]
    one_sentence(run_cli("train", "--config", config, *overrides), *parts)
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_missing_config_file(run_cli):
    one_sentence(
        run_cli("train", "--config", "nowhere.yaml"), "cannot read the configuration nowhere.yaml: No such file"
    )


def test_a_run_of_another_config_is_refused(run_cli, config):
    assert run_cli("train", "--config", config, "train.epochs=1")[0] == 0
    outcome = run_cli("train", "--config", config, "run.seed=5", "train.batch_size=32")
    one_sentence(outcome, "run.seed is 5 but the run has 421", "train.batch_size is 32 but the run has 64")


def make(path, users, items, num_users, num_items, splits=("train",), **features):
    with dataset_writer(str(path), num_users=num_users, num_items=num_items) as writer:
        for split in splits:
            writer.add_interactions(split, np.array(users), np.array(items))
        for name, rows in features.items():
            writer.add_features(name, rows)
        writer.add_ids("users", pa.array(range(num_users)))
        writer.add_ids("items", pa.array(range(num_items)))
    return f"data.path={path}"


def test_a_user_with_every_item(run_cli, tmp_path, config):
    data = make(tmp_path / "d", [0, 0, 1], [0, 1, 0], 2, 2, ("train", "valid"), visual=np.ones((2, 3), np.float32))
    outcome = run_cli("train", "--config", config, data)
    one_sentence(outcome, "user 0 has interacted with all 2 items", "no negative item can be drawn")


def test_empty_validation_split(run_cli, tmp_path, config):
    data = make(tmp_path / "d", [0, 1], [0, 1], 2, 3, ("train", "test"), visual=np.ones((3, 3), np.float32))
    outcome = run_cli("train", "--config", config, data)
    one_sentence(outcome, "no validation interactions", "eval.protocol=published")
    assert (
        run_cli("train", "--config", config, data, "eval.protocol=published", "run.path=" + str(tmp_path / "r"))[0] == 0
    )


def test_no_training_interactions_and_no_modalities(run_cli, tmp_path, config):
    one_sentence(run_cli("train", "--config", config, make(tmp_path / "a", [0], [0], 2, 3, ("test",))), "no training")
    plain = make(tmp_path / "b", [0, 1], [0, 1], 2, 3, ("train", "valid", "test"))
    run = f"run.path={tmp_path / 'other'}"
    one_sentence(run_cli("train", "--config", config, plain, run), "needs at least one modality", "model.name=lightgcn")
    run = f"run.path={tmp_path / 'third'}"
    assert run_cli("train", "--config", config, plain, run, "model.name=lightgcn")[0] == 0


def test_a_damaged_dataset(run_cli, tmp_path, config):
    path = synthetic_dataset(tmp_path / "d")
    file = tmp_path / "d" / "interactions" / "split=train" / "part-00000.arrow"
    file.write_bytes(file.read_bytes()[:-100])
    one_sentence(run_cli("train", "--config", config, f"data.path={path}"), str(file), "is damaged: its checksum")
    one_sentence(run_cli("inspect", path, "--verify"), "split=train/part-00000.arrow missing or changed")


def test_a_forbidden_pickle(run_cli, tmp_path):
    folder = published_folder(tmp_path / "raw")
    (folder / "trnMat.pkl").write_bytes(evil_pickle(tmp_path / "was-here"))
    one_sentence(run_cli("prepare", "diffmm", folder, "--out", tmp_path / "d"), "refusing the pickle", "system")
    assert not (tmp_path / "d").exists()
    assert not (tmp_path / "was-here").exists()


@pytest.mark.parametrize(
    ("rows", "part"),
    [
        (np.full((9, 5), np.nan, np.float32), "modality 'visual': the features of item row 0 hold NaN"),
        (np.full((9, 5), np.inf, np.float32), "modality 'visual': the features of item row 0 hold infinity"),
        (np.zeros((3, 5), np.float32), "modality 'visual' has 3 feature rows but there are 9 items"),
    ],
)
def test_bad_features(run_cli, tmp_path, rows, part):
    folder = published_folder(tmp_path / "raw")
    np.save(folder / "image_feat.npy", rows)
    one_sentence(run_cli("prepare", "diffmm", folder, "--out", tmp_path / "d"), part)
    assert not (tmp_path / "d").exists()


def test_ids_out_of_range(run_cli, tmp_path):
    folder = published_folder(tmp_path / "raw")
    matrix = sp.coo_matrix((np.ones(1), ([0], [1])), shape=(12, 9))
    matrix.coords = (np.array([99]), np.array([1]))
    (folder / "tstMat.pkl").write_bytes(pickle.dumps(matrix))
    one_sentence(run_cli("prepare", "diffmm", folder, "--out", tmp_path / "d"), "user id 99 is out of range")


def test_a_loss_that_is_not_finite(run_cli, tmp_path, config):
    assert run_cli("train", "--config", config, "train.epochs=1")[0] == 0
    # The same run, made to explode.
    run = tmp_path / "run"
    forge_config(run, "learning_rate: 0.01", "learning_rate: 1e+25")
    outcome = run_cli("train", "--config", config, "train.epochs=3", "train.learning_rate=1e25")
    one_sentence(outcome, "became nan", "phase 'recommend'", "epoch 1", "the last good checkpoint is epoch-00001")
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["epoch-00001"]
    assert json.loads((run / "result.json").read_text())["epochs"] == 1


def test_published_protocol_is_stamped_on_every_table(run_cli, tmp_path, config):
    _, out, _ = run_cli("train", "--config", config, "eval.protocol=published", "model.name=popularity")
    assert "PUBLISHED PROTOCOL: chosen on test" in out
    _, out, _ = run_cli("evaluate", tmp_path / "run")
    assert "PUBLISHED PROTOCOL: chosen on test" in out
    _, out, _ = run_cli("compare", tmp_path / "run")
    assert "published" in out


def test_the_ndcg_of_promptmm_is_measured_where_it_is_asked_for(run_cli, tmp_path, config):
    run, name = tmp_path / "run", "ndcg_retrieved"
    settings = ["model.name=popularity", "eval.k=[5,20]"]
    assert name not in run_cli("train", "--config", config, *settings)[1]
    assert name not in run_cli("evaluate", run)[1]
    assert name in run_cli("evaluate", run, "--retrieved-ndcg")[1]
    plain = json.loads((run / "result.json").read_text())
    settings += [f"run.path={tmp_path}/with", "eval.retrieved_ndcg=true"]
    assert name in run_cli("train", "--config", config, *settings)[1]
    assert name in run_cli("evaluate", tmp_path / "with")[1]
    result = json.loads((tmp_path / "with" / "result.json").read_text())
    for split in ("valid", "test"):
        more = {key: value for key, value in result[split].items() if key.startswith(f"{name}@")}
        assert result[split] == plain[split] | more
        assert [more[f"{name}@{k}"] >= plain[split][f"ndcg@{k}"] for k in (5, 20)] == [True, True]
    assert f'"valid/{name}@5": ' in (tmp_path / "with" / "metrics.jsonl").read_text()


def test_evaluate_on_validation_and_on_an_empty_split(run_cli, tmp_path, config):
    data = make(tmp_path / "d", [0, 1], [0, 1], 2, 3, ("train", "valid"))
    run_cli("train", "--config", config, data, "model.name=popularity")
    status, out, _ = run_cli("evaluate", tmp_path / "run", "--split", "valid")
    assert status == 0
    assert "valid of " in out
    one_sentence(run_cli("evaluate", tmp_path / "run"), "has no test interactions to evaluate on")


def test_a_run_whose_dataset_has_changed(run_cli, tmp_path, config):
    data = make(tmp_path / "d", [0, 1], [0, 1], 2, 3, ("train", "valid", "test"))
    run_cli("train", "--config", config, data, "model.name=popularity")
    shutil.rmtree(tmp_path / "d")
    make(tmp_path / "d", [0, 1], [1, 2], 2, 3, ("train", "valid", "test"))
    one_sentence(run_cli("evaluate", tmp_path / "run"), "is not the one that run", "was trained on")


def test_fewer_epochs_than_trained_are_refused(run_cli, tmp_path, config):
    run_cli("train", "--config", config, "train.epochs=2")
    (tmp_path / "run" / "result.json").unlink()
    one_sentence(run_cli("train", "--config", config, "train.epochs=1"), "has trained 2 epochs already")


@pytest.mark.parametrize("content", [b"garbage\n", b"{}\n", b"null\n", b"\xff\xfe\n", b"", None])
def test_damaged_metrics(run_cli, tmp_path, config, content):
    run_cli("train", "--config", config, "train.epochs=1")
    (tmp_path / "run" / "metrics.jsonl").unlink()
    if content is not None:
        (tmp_path / "run" / "metrics.jsonl").write_bytes(content)
    status, out, _ = run_cli("train", "--config", config, "train.epochs=2")
    assert status == 0
    said = "metrics.jsonl has lost the records of epochs 0; it was damaged, shortened or removed"
    assert f"note: {said}" in " ".join(out.split())
    assert json.loads((tmp_path / "run" / "result.json").read_text())["notes"] == [said]
    assert [record["epoch"] for record in metrics_of(tmp_path / "run")] == [1]


def test_a_checkpoint_of_another_model(run_cli, tmp_path, config):
    run_cli("train", "--config", config, "train.epochs=1")
    forge_config(tmp_path / "run", "embedding_dim: 8", "embedding_dim: 9")
    one_sentence(run_cli("evaluate", tmp_path / "run"), "the checkpoint's tensors are not those of this model")


def test_what_the_system_refuses_is_one_sentence(run_cli, tmp_path, config):
    (tmp_path / "run" / "metrics.jsonl.partial").mkdir(parents=True)
    one_sentence(
        run_cli("train", "--config", config), "metrics.jsonl.partial: Is a directory; make room or give access"
    )


def test_names_are_no_markup(run_cli, tmp_path):
    path = synthetic_dataset(tmp_path / "[red]d[/x]")
    _, out, _ = run_cli("inspect", path)
    assert "[red]d[/x]" in out


def test_commands_on_unfinished_runs(run_cli, tmp_path, config):
    data = make(tmp_path / "d", [0, 1], [0, 1], 2, 3, ("train", "valid"), visual=np.full((3, 2), 1e38, np.float32))
    run = tmp_path / "run"
    assert run_cli("train", "--config", config, data)[0] == 1  # the loss is not finite in the first epoch
    one_sentence(run_cli("compare", run), "has not finished; run its `train` command again")
    one_sentence(run_cli("evaluate", run), "has not evaluated an epoch yet")
    (tmp_path / "empty").mkdir()
    one_sentence(run_cli("evaluate", tmp_path / "empty"), "is not a run folder")
    one_sentence(run_cli("export", tmp_path / "nowhere", "--out", tmp_path / "b"), "is not a run folder")
    one_sentence(run_cli("recommend", tmp_path, "--all", "--out", "r.parquet"), "is not a complete bundle")


def test_bad_options(run_cli, tmp_path, config):
    run_cli("train", "--config", config, "model.name=popularity")
    run_cli("export", tmp_path / "run", "--out", tmp_path / "bundle")
    one_sentence(run_cli("evaluate", tmp_path / "run", "--split", "tset"), "--split tset is neither valid nor test")
    one_sentence(run_cli("evaluate", tmp_path / "run", "--k", "5,x"), "--k 5,x must be whole numbers")
    one_sentence(run_cli("recommend", tmp_path / "bundle"), "give either --users ID,ID or --all")
    one_sentence(run_cli("recommend", tmp_path / "bundle", "--all"), "--all needs --out")
    one_sentence(
        run_cli("recommend", tmp_path / "bundle", "--users", "bob"), "no user 'bob'; its ids look like 'user_0'"
    )
    one_sentence(run_cli("prepare", "synthetic", "--out", tmp_path / "x", "--modality", "visual"), "such as visual:64")
    one_sentence(run_cli("export", tmp_path / "run", "--out", tmp_path / "bundle"), "already exists")
    one_sentence(run_cli("recommend", tmp_path / "bundle", "--users", " , "), "--users names no user")
    _, out, _ = run_cli("recommend", tmp_path / "bundle", "--users", "user_1, user_1", "--k", "3")
    assert out.count("user_1") == 3
    one_sentence(run_cli("evaluate", tmp_path / "run", "--k", "9999999999"), "must be whole numbers")
    one_sentence(run_cli("evaluate", tmp_path / "run", "--k", "9" * 5000), "must be whole numbers")
    twice = ("--modality", "visual:3", "--modality", "visual:4")
    one_sentence(run_cli("prepare", "synthetic", "--out", tmp_path / "x", *twice), "give each modality once")
    wrong = ("--modality", "visual", "--modality", "wide:0", "--items", "3")
    parts = ("such as visual:64", "'wide:0' must be", "at least 1 user and 6 items")
    one_sentence(run_cli("prepare", "synthetic", "--out", tmp_path / "x", *wrong), *parts)
    named = ("--modality", "items:3", "--users", 30, "--items", 20, "--interactions", 200)
    run_cli("prepare", "synthetic", "--out", tmp_path / "named", *named)
    other = f"run.path={tmp_path / 'named run'}"
    outcome = run_cli("train", "--config", config, f"data.path={tmp_path / 'named'}", other)
    one_sentence(outcome, "a modality cannot be called 'items' here")
    (tmp_path / "bundle" / "bundle.json").write_text("{}")
    one_sentence(run_cli("recommend", tmp_path / "bundle", "--users", "user_0"), "bundle.json is damaged at 'format'")
    run_cli("export", tmp_path / "run", "--out", tmp_path / "bundle", "--force")
    (tmp_path / "bundle" / "users.arrow").write_bytes(b"x")
    one_sentence(
        run_cli("recommend", tmp_path / "bundle", "--users", "user_0"), "users.arrow is truncated or not an Arrow file"
    )
    assert len(metrics_of(tmp_path / "run")) == 1
