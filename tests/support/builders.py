"""Small problems and files for tests."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
import yaml

from diffmm_dist.data.training import TrainingData
from diffmm_dist.diffusion.schedule import DiffusionSchedule
from diffmm_dist.graph.hetero import REAL, HeteroGraph
from diffmm_dist.graph.propagate import propagate
from diffmm_dist.losses.contrastive import BatchNodes
from diffmm_dist.parallel.ranges import Ownership
from diffmm_dist.parallel.shard import Shard
from diffmm_dist.parallel.world import World
from diffmm_dist.preparation.synthetic import SyntheticSpec, generate
from diffmm_dist.preparation.synthetic_knowledge import KnowledgeSpec
from diffmm_dist.runs.checkpoint import Checkpoints
from diffmm_dist.runs.config import Config
from diffmm_dist.runs.progress import Cursor, Progress
from diffmm_dist.runs.run_folder import RunFolder
from diffmm_dist.sparse import CSR
from diffmm_dist.training.worker import run_worker

ROOT = Path(__file__).parents[2]

# A whole DiffMM run in seconds.
SMALL = {
    "model": {"name": "diffmm", "embedding_dim": 8, "diffusion": {"denoiser_hidden_dims": [16]}},
    "train": {"epochs": 3, "batch_size": 64, "learning_rate": 0.01},
    "eval": {"k": [5, 20], "batch_size": 32},
    "cluster": {"threads_per_worker": 1},
    # Runs whose bits are compared must not choose a kernel by what was faster at the time.
    "graph": {"kernel": "csr"},
}


def random_pairs(num_rows, num_columns, share=0.2, seed=0, empty_rows=(), empty_columns=()):
    """A random pattern with some rows and columns left empty."""
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.rand(num_rows, num_columns, generator=generator) < share
    chosen[list(empty_rows)] = False
    chosen[:, list(empty_columns)] = False
    rows, columns = chosen.nonzero(as_tuple=True)
    return CSR.from_pairs(rows, columns, num_rows=num_rows, num_columns=num_columns)


def random_rows(num_rows, width, seed=0, grad=False):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(num_rows, width, generator=generator).requires_grad_(grad)


def as_matrix(relation, kernel="csr"):
    """The matrix of a propagation, column by column."""
    num_users, num_items = relation.user_scale.shape[0], relation.item_loop.shape[0]
    identity = torch.eye(num_users + num_items)
    graph = HeteroGraph({REAL: relation}, kernel=kernel)
    return torch.cat(propagate(graph, REAL, identity[:num_users], identity[num_users:]))


def schedule(num_timesteps=5, **overrides):
    """The published schedule, or one with other settings."""
    settings = {"noise_scale": 0.1, "noise_min": 1e-4, "noise_max": 0.02} | overrides
    return DiffusionSchedule(num_timesteps, **settings)


def training_data(interactions, widths):
    """Training data of one worker, with random features of the given width per modality."""
    shard = Shard.whole(interactions.num_rows, interactions.num_columns)
    features = {name: random_rows(shard.num_items, width, seed=width) for name, width in widths.items()}
    return TrainingData(shard, interactions, interactions.num_entries, features)


def own_rows(pairs, shard):
    """The rows of a pattern that a shard owns."""
    return pairs.select(torch.arange(*shard.users.own))


def nodes_of(nodes, num_nodes):
    """A batch of nodes, with repeats, in a world of one."""
    counts = torch.bincount(nodes, minlength=num_nodes)
    return BatchNodes.counted(counts, Ownership.even(num_nodes), World.single(), batch_size=len(nodes))


def synthetic_dataset(path, users=60, items=40, interactions=600, modalities=None, seed=1, knowledge=False):
    """Write a small synthetic dataset, with a knowledge graph if asked for, and return its path."""
    modalities = {"visual": 6, "textual": 4} if modalities is None else modalities
    facts = KnowledgeSpec(items // 2, 5 * items) if knowledge else None
    generate(SyntheticSpec(users, items, interactions, modalities, seed, facts), str(path))
    return str(path)


def small_config(data_path, run_path, **sections):
    """A configuration of a run in seconds; sections override single keys."""
    tree = {**SMALL, "data": {"path": str(data_path)}, "run": {"path": str(run_path)}}
    return Config.model_validate(merged(tree, sections))


def merged(tree, more):
    """A tree of settings with others, key by key; another model brings its own, of which only the width is given."""
    if more.get("name", tree.get("name")) != tree.get("name"):
        tree = {"embedding_dim": tree["embedding_dim"]} if more["name"] != "popularity" else {}
        if more["name"] == "diffkg":
            tree |= {"diffusion": {"denoiser_hidden_dims": [16]}}
    both = {**tree, **more}
    return {
        key: merged(tree[key], value) if isinstance(value, dict) and isinstance(tree.get(key), dict) else value
        for key, value in both.items()
    }


def write_config(path, **sections):
    Path(path).write_text(yaml.safe_dump(merged(SMALL, sections)))
    return str(path)


def launch(*arguments, check=True, timeout=280, env=None, **kwargs):
    """Run launch.py in a process of its own, as a user would."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "launch.py"), *map(str, arguments)],
        capture_output=True, text=True, check=False, timeout=timeout, env={**os.environ, **(env or {})}, **kwargs,
    )  # fmt: skip
    assert done.returncode == 0 or not check, done.stderr
    return done


def train_alone(config):
    """Train in this process; return the result."""
    return run_worker(config, stop_requested=lambda: False, show_progress=False)


def warnings_in(caplog):
    """The warnings that were logged, in their order."""
    return [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]


RUN_ID = "0123456789abcdef" * 2


def run_checkpoints(path, *, run=RUN_ID, keep=1, **options):
    """The checkpoints of a run in a folder of their own."""
    return Checkpoints(str(path), run=run, keep=keep, world=World.single(), **options)


def progress_at(*cursor):
    """What a checkpoint says that knows nothing but its place."""
    return Progress(Cursor(*cursor), None, {}, {}, {})


def checkpoint_of(checkpoints):
    """The newest checkpoint."""
    return checkpoints.open(checkpoints.names()[-1])


def checkpoint_tensors(path):
    """All tensors of one checkpoint of a run."""
    folder = path.parent
    return run_checkpoints(folder, run=RunFolder(str(folder.parent)).run).open(path.name).tensors()


def metrics_of(run):
    """The lines of metrics.jsonl without what depends on the clock, the number of workers or how often they began."""
    clock = ("time/", "mem/", "throughput/", "comm/", "storage/", "writer")
    records = RunFolder(str(run)).records()
    return [{tag: value for tag, value in record.items() if not tag.startswith(clock)} for record in records]


def published_folder(path, num_users=12, num_items=9, text=False, seed=3):
    """A folder in the form published with DiffMM."""
    import pickle

    import scipy.sparse as sp

    path = Path(path)
    path.mkdir(parents=True)
    random = np.random.default_rng(seed)
    cells = random.permutation(num_users * num_items)[: num_users * 4]
    for index, name in enumerate(("trnMat", "valMat", "tstMat")):
        part = cells[index::3]
        matrix = sp.coo_matrix(
            (np.ones(part.size), (part // num_items, part % num_items)), shape=(num_users, num_items)
        )
        (path / f"{name}.pkl").write_bytes(pickle.dumps(matrix))
    np.save(path / "image_feat.npy", random.standard_normal((num_items, 5)).astype(np.float16))
    np.save(path / "audio_feat.npy", random.standard_normal((num_items, 3)))
    if text:
        np.save(path / "text_feat.npy", random.standard_normal((num_items, 4)).astype(np.float32))
    return path


class GivenRows:
    """In place of a random stream: normal values that the test gives, (rows, all columns), and random dropout."""

    def __init__(self, values, dropout=None):
        self.values = values
        self.dropout = dropout

    def normal_rows(self, ids, columns, *, std=None, keep_prob=1.0, dtype=torch.float32):
        factors = 1 if keep_prob == 1 else self.dropout.dropout_rows(ids, columns, keep_prob=keep_prob)
        return (self.values[:, columns] * (1 if std is None else std[:, None]) * factors).to(dtype)

    def dropout_pairs(self, ids, columns, *, keep_prob):
        return self.dropout.dropout_pairs(ids, columns, keep_prob=keep_prob)

    def child(self, name):
        assert name == "dropout"
        return self.dropout


def whole(items):
    """All items' embeddings as the one block of one worker."""
    return [(torch.arange(len(items)), items)]


def train_and_go_on(run_cli, place, folder):
    """Prepare data on a store, train an epoch there and go on for another; return the log of the second command."""
    size = ("--users", 40, "--items", 20, "--interactions", 300)
    assert run_cli("prepare", "synthetic", "--out", f"{place}/data", *size)[0] == 0
    config = write_config(folder / "c.yaml", data={"path": f"{place}/data"}, run={"path": f"{place}/run"},
                          train={"epochs": 1})  # fmt: skip
    for epochs in (1, 2):
        status, _, err = run_cli("train", config, f"train.epochs={epochs}")
        assert status == 0, err
    assert "resuming" in err
    return err
