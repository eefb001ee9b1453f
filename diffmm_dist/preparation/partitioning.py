"""The ``partition`` command: reorder a dataset so that workers exchange less."""

from typing import Literal

import numpy as np
import torch

from diffmm_dist.data.dataset import Dataset
from diffmm_dist.data.knowledge import ENTITIES, TABLE
from diffmm_dist.data.schema import Manifest
from diffmm_dist.errors import UserError
from diffmm_dist.graph.partition import Links, deal, links_report, metis_parts, partition_report, random_parts
from diffmm_dist.preparation.relabel import write_relabelled

Method = Literal["metis", "random"]


def partition_dataset(uri: str, out: str, *, num_parts: int, method: Method, seed: int, force: bool = False) -> None:
    """Partition a dataset's training graph and write the dataset part by part; its ids stay what they were.

    The manifest keeps what the partition costs, beside the same of a random one. The entities of a knowledge graph are
    cut together with users and items. Rows of other axes, if a table lies with them, are dealt out at random; the rest,
    such as relations, and axes with fewer rows than parts stay as they are.

    Raises:
        UserError: there is no such dataset, more parts than users or items are asked for, the place is taken, or
            nothing here brings METIS.
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
    further = {
        name: deal(dataset.manifest.counts[name], num_parts, seed=seed, kind=name)
        for name in _headed(dataset.manifest)
        if dataset.manifest.counts[name] >= num_parts
    }
    library = None
    links = _links(dataset) if ENTITIES in further else None
    if links is not None:
        report["random"] |= links_report(links, parts, further[ENTITIES])
    if method == "metis":
        parts, of_entities, library = metis_parts(pairs, num_parts, links)
        report = {"metis": partition_report(pairs, parts)} | report
        if links is not None:
            further[ENTITIES] = of_entities
            report["metis"] |= links_report(links, parts, of_entities)
    write_relabelled(
        dataset,
        out,
        parts={"users": parts.users, "items": parts.items, **further},
        num_parts=num_parts,
        method=method,
        report=report,
        cut_by=library,
        force=force,
    )


def _headed(manifest: Manifest) -> list[str]:
    """Return the axes, besides users and items, whose rows the first column of a table names."""
    heads = [axis for table in manifest.tables.values() for axis in next(iter(table.columns.values()))]
    return [axis for axis in dict.fromkeys(heads) if axis in manifest.axes]


def _links(dataset: Dataset) -> Links:
    """Return the facts of a knowledge graph as links between items and further entities."""
    none = np.empty(0, np.int64)
    ends = [(none, none), *((columns[0], columns[2]) for columns in dataset.stream_table(TABLE))]
    heads, tails = (torch.from_numpy(np.concatenate(side)) for side in zip(*ends, strict=True))
    return Links(heads, tails, dataset.manifest.counts[ENTITIES])
