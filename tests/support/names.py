"""Datasets whose users and items have names that a page must not take for markup."""

import pyarrow as pa

from diffmm_dist.data.dataset import Dataset
from diffmm_dist.data.schema import SPLITS
from diffmm_dist.data.writer import dataset_writer

EVIL = "<script>document.title='taken'</script><img src=http://example.invalid/x onerror=alert(1)>&\"'\u202e"


def with_evil_names(source, path):
    """Write a dataset anew, its users and items under such names, and return its path."""
    dataset = Dataset.open(str(source))
    with dataset_writer(str(path), num_users=dataset.num_users, num_items=dataset.num_items) as writer:
        for split in SPLITS:
            for users, items in dataset.stream(split):
                writer.add_interactions(split, users, items)
        for name in dataset.manifest.modalities:
            writer.add_features(name, dataset.features(name).numpy())
        for kind, count in (("users", dataset.num_users), ("items", dataset.num_items)):
            writer.add_ids(kind, pa.array([f"{row}{EVIL}" for row in range(count)]))
    return str(path)
