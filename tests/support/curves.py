"""Golden loss curves: what every loss of a small run was, step by step, when its numbers were last looked at.

A run of 20 epochs, each one step of every phase, goes through all that trains: drawing, denoising, rebuilding, the
graphs, the losses and the optimisers. The committed numbers are those of one worker, and any number of workers gives
them, so a change that is common to all runs cannot pass unseen. A new model adds a line to ``CASES``.

A change that is meant to change the numbers writes them anew, and its commit says why:

    python -m tests.support.curves
"""

import json
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from diffmm_dist.parallel.world import World
from tests.support.builders import ROOT, metrics_of, small_config, synthetic_dataset, train_alone
from tests.support.workers import on_workers

FOLDER = ROOT / "tests" / "golden" / "curves"
NUM_STEPS = 20
_DIGITS = 7  # float32 has no more
_TRAIN = {"epochs": NUM_STEPS, "batch_size": 10_000, "learning_rate": 0.003}  # clipped to the data: one step
_GRAPH = {"kernel": "csr"}

# Each curve's name, and the sections of its run besides these.
CASES: dict[str, dict[str, Any]] = {
    "diffmm": {"model": {"name": "diffmm"}},
    "diffmm-modal": {
        "model": {"name": "diffmm", "modality_projection": "affine", "num_layers": 2,
                  "contrast": {"contrastive_anchor": "modal"}},
    },
    "diffkg": {"model": {"name": "diffkg", "knowledge": {"num_hops": 2, "max_facts": 4}}},
    "diffkg-released": {"model": {"name": "diffkg", "mode": "released", "denoiser": {"sharding": "items"}}},
    # Scores of modalities are large; without a temperature their softmax makes last digits into first ones.
    "promptmm": {
        "model": {"name": "promptmm", "prompt": {"bpr_weight": 1.0}, "distillation": {"teacher_temperature": 30.0}},
    },
    "promptmm-released": {
        "model": {"name": "promptmm", "mode": "release", "prompt": {"bpr_weight": 1.0},
                  "student": {"kind": "mm_light"}},
    },
    "lightgcn": {"model": {"name": "lightgcn", "num_layers": 2}},
    "adagcl": {"model": {"name": "adagcl"}, "run": {"seed": 1}},  # a seed whose first view has a part of the edges
}  # fmt: skip


def make_dataset(folder):
    """The dataset of all curves: two modalities, and a knowledge graph."""
    return synthetic_dataset(Path(folder) / "data", knowledge=True)


def train_case(world, *, name, data, folder):
    """Train a case, on every worker of a group."""
    train_alone(small_config(data, Path(folder) / name, **CASES[name], train=_TRAIN, graph=_GRAPH))


def curve_of(folder, name):
    """What each loss of a trained case was at each step of its stage, by tag."""
    values: dict[str, list[float]] = {}
    for record in metrics_of(Path(folder) / name):
        for tag, value in record.items():
            if "/" in tag and not {"valid", "test"} & set(tag.split("/")):
                values.setdefault(tag, []).append(float(f"{value:.{_DIGITS}g}"))
    return values


def committed(name):
    """The curve that stands in the repository."""
    return json.loads((FOLDER / f"{name}.json").read_text())


def check_curves(size, folder):
    """Every case, trained by a number of workers, gives the committed curve."""
    data = make_dataset(folder)
    on_workers(size, *(partial(train_case, name=name, data=data, folder=folder) for name in CASES))
    for name in CASES:
        expected, found = committed(name), curve_of(folder, name)
        assert list(found) == list(expected), name
        for tag, values in expected.items():
            # Workers and kernels sum in different orders, which moves the last digit after 20 steps of Adam.
            assert found[tag] == pytest.approx(values, rel=2e-5, abs=1e-9), (name, tag)


def main():
    """Write all curves anew."""
    FOLDER.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        data = make_dataset(folder)
        for name in CASES:
            train_case(World.single(), name=name, data=data, folder=folder)
            lines = (f'  "{tag}": {json.dumps(values)}' for tag, values in curve_of(folder, name).items())
            (FOLDER / f"{name}.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main()
