"""8 million interactions with string ids, Parquet on S3, become a dataset on S3 in under 2.5 GiB."""

import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from diffmm_dist.data.dataset import Dataset
from diffmm_dist.stores.s3 import file_system
from tests.support.builders import ROOT

NUM_FILES, ROWS_PER_FILE, NUM_USERS, NUM_ITEMS = 4, 2_000_000, 160_000, 40_000
# Prints the peak memory of a command in GiB.
MEASURE = """
import resource, subprocess, sys
subprocess.run(sys.argv[1:], check=True)
print("peak", resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20)
"""


@pytest.mark.timeout(900)
def test_eight_million_rows(place, environment, tmp_path):
    rng = np.random.default_rng(7)
    user_names, item_names = (
        pa.array([f"{kind}-{number * 2654435761 % 2**32:08x}" for number in range(count)])
        for kind, count in (("customer", NUM_USERS), ("product", NUM_ITEMS))
    )
    for number in range(NUM_FILES):
        users = rng.integers(0, NUM_USERS, ROWS_PER_FILE)
        items = (NUM_ITEMS * rng.random(ROWS_PER_FILE) ** 2).astype(np.int64)
        columns = {
            "user": user_names.take(users),
            "item": item_names.take(items),
            "at": rng.integers(0, 10**9, ROWS_PER_FILE),
        }
        parquet.write_table(pa.table(columns), tmp_path / f"part-{number}.parquet")
    # Through the server: it keeps what it knows of folders, and would not see files that appear behind its back.
    file_system().put(f"{tmp_path}/", f"{place}/events/", recursive=True)
    prepare = ["prepare", "tables", f"{place}/events", "--out", f"{place}/data", "--user", "user", "--item", "item"]
    options = ["--timestamp", "at", "--split", "leave-last-out", "--k-core", "5"]
    command = [sys.executable, str(ROOT / "launch.py"), *prepare, *options]
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, *command], env=environment, capture_output=True, text=True, timeout=800
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout.split()[-1]) < 2.5
    manifest = Dataset.open(f"{place}/data").manifest
    assert manifest.num_users == NUM_USERS
    assert manifest.num_interactions("test") == manifest.num_interactions("valid") == NUM_USERS
    assert 7_600_000 < sum(manifest.num_interactions(split) for split in ("train", "valid", "test")) < 8_000_000
