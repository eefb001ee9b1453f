"""`partition` needs memory for the graph, and none that grows with the features."""

import re
import subprocess
import sys

import numpy as np
import pyarrow as pa

from diffmm_dist.data.dataset import Dataset
from diffmm_dist.data.writer import dataset_writer
from tests.support.builders import ROOT

NUM_USERS, NUM_ITEMS, WIDTH = 2000, 60_000, 1024  # 234 MiB of features
# Runs a command in this process and prints the most memory that it had, in MiB.
MEASURE = """
import re, sys
from diffmm_dist.cli import app
try:
    app(sys.argv[1:])
finally:
    print("peak", int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read()).group(1)) // 1024)
"""


def write(path, width):
    rng = np.random.default_rng(1)
    users = np.repeat(np.arange(NUM_USERS), 5)
    items = np.sort(rng.integers(0, NUM_ITEMS, (NUM_USERS, 5)), axis=1).reshape(-1)
    with dataset_writer(str(path), num_users=NUM_USERS, num_items=NUM_ITEMS) as writer:
        for split in ("train", "valid", "test"):
            writer.add_interactions(split, users, items)
        for _ in range(0, NUM_ITEMS, 6000):
            writer.add_features("visual", rng.random((6000, width), dtype=np.float32))
        writer.add_ids("users", pa.array(np.arange(NUM_USERS)))
        writer.add_ids("items", pa.array(np.arange(NUM_ITEMS)))
    return path


def peak_mib(path, out):
    command = ["partition", str(path), "--out", str(out), "--num-parts", "4", "--method", "random"]
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, *command], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return int(re.search(r"peak (\d+)", done.stdout).group(1))


def test_wide_features_take_no_memory(tmp_path):
    narrow = peak_mib(write(tmp_path / "narrow", 1), tmp_path / "narrow-parts")
    wide = peak_mib(write(tmp_path / "wide", WIDTH), tmp_path / "wide-parts")
    assert wide - narrow < 120
    old, new = Dataset.open(str(tmp_path / "wide")), Dataset.open(str(tmp_path / "wide-parts"))
    rows = new.source_rows("items")
    assert np.array_equal(new.features("visual").numpy(), old.features("visual")[rows].numpy())
