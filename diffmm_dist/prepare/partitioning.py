"""The ``partition`` command: reorder a dataset so that workers exchange less."""

from typing import Literal

from diffmm_dist.data.dataset import Dataset
from diffmm_dist.errors import UserError
from diffmm_dist.graph.partition import deal, metis_parts, partition_report, random_parts
from diffmm_dist.prepare.relabel import write_relabelled

Method = Literal["metis", "random"]


def partition_dataset(uri: str, out: str, *, num_parts: int, method: Method, seed: int, force: bool = False) -> None:
    """Partition a dataset's training graph and write the dataset part by part; its ids stay what they were.

    The manifest keeps what the partition costs, beside the same of a random one. Rows of other axes than users and
    items are dealt out at random; where they are fewer than the parts, every worker has them all.

    Raises:
        UserError: there is no such dataset, more parts than users or items are asked for, or the place is taken.
    """
    dataset = Dataset.open(uri)
    fewest = min(dataset.num_users, dataset.num_items)
    if not 1 <= num_parts <= fewest:
        raise UserError(
            f"--num-parts {num_parts} must be between 1 and {fewest}, the number of users or items of {uri}"
        )
    pairs = dataset.interactions("train")
    parts = random_parts(pairs, num_parts, seed=seed)
    report = {"random": partition_report(pairs, parts)}
    if method == "metis":
        parts = metis_parts(pairs, num_parts)
        report = {"metis": partition_report(pairs, parts)} | report
    further = {
        name: deal(axis.count, num_parts, seed=seed, kind=name)
        for name, axis in dataset.manifest.axes.items()
        if axis.count >= num_parts
    }
    write_relabelled(
        dataset,
        out,
        parts={"users": parts.users, "items": parts.items, **further},
        num_parts=num_parts,
        method=method,
        report=report,
        force=force,
    )
