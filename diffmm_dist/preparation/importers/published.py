"""The folders published with DiffMM, AdaGCL, DiffKG and PromptMM: matrices or lists, with or without NumPy features."""

import os
from collections.abc import Collection, Iterator, Mapping
from itertools import combinations
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from diffmm_dist import storage
from diffmm_dist.data.checks import storable
from diffmm_dist.data.schema import Split
from diffmm_dist.data.writer import dataset_writer
from diffmm_dist.errors import UserError
from diffmm_dist.preparation.importers.arrays import open_rows
from diffmm_dist.preparation.importers.published_knowledge import FACTS, RELATIONS, PublishedKnowledge, read_knowledge
from diffmm_dist.preparation.importers.published_lists import LISTS, read_lists
from diffmm_dist.preparation.importers.report import NO_VALIDATION, ImportReport, Mistakes
from diffmm_dist.preparation.importers.sparse_pickle import Pattern, read_patterns
from diffmm_dist.staging import scratch_folder

MATRICES: dict[Split, str] = {"train": "trnMat.pkl", "valid": "valMat.pkl", "test": "tstMat.pkl"}
FEATURES = {"visual": "image_feat.npy", "textual": "text_feat.npy", "acoustic": "audio_feat.npy"}
_ROWS_PER_CHUNK = 16_384
_SHOWN = 5  # names of a folder that a note repeats


def import_published(folder: str, out: str, *, force: bool = False) -> ImportReport:
    """Convert a published folder into a dataset.

    Non-zero entries become interactions; ids are the row and column numbers.

    Args:
        folder: path or an address; holds trnMat.pkl, tstMat.pkl, valMat.pkl if there is one, or in their place
            train.json, test.json and val.json, any or none of image/text/audio_feat.npy, and kg.txt, with relations.txt
            or without, if there is a knowledge graph. What else it holds is left aside, and a note says so.
        out: the dataset to write.
        force: replace a dataset that is already there.

    Raises:
        UserError: a file is missing, damaged, unsafe or does not fit the others.
    """
    names = storage.list_names(folder)
    if not names:
        raise UserError(f"{folder} is not a folder with files; give the one that holds {MATRICES['train']}")
    has_lists = MATRICES["train"] not in names and LISTS["train"] in names
    splits = LISTS if has_lists else MATRICES
    missing = [name for name in (*splits.values(), *FEATURES.values()) if name not in names]
    paths = {name: storage.join(folder, name) for name in (*splits.values(), *FEATURES.values())}
    wrong = Mistakes(
        f"{paths[needed]} is missing; a published folder must have it"
        for needed in (splits["train"], splits["test"])
        if needed in missing
    )
    features: dict[str, npt.NDArray[Any]] = {}
    for modality, name in FEATURES.items():
        if name not in missing:
            with wrong.collected():
                features[modality] = open_rows(paths[name], kinds="f", needed="float rows")
    there = {split: paths[name] for split, name in splits.items() if name not in missing}
    if has_lists:
        matrices = read_lists(there, wrong, num_items=max((len(rows) for rows in features.values()), default=0))
    else:
        matrices = _read_matrices(there, wrong)
    if "train" in matrices:
        wrong += _disagreements(there, matrices, features)
    num_items = matrices["train"].shape[1] if "train" in matrices else 0
    facts = _read_facts(folder, names, wrong, num_items=num_items)
    wrong.check()
    num_users, num_items = matrices["train"].shape
    axes = facts.axes(num_items) if facts else None
    with dataset_writer(out, num_users=num_users, num_items=num_items, axes=axes, force=force) as writer:
        writer.made_by = {"importer": "published", "source": storage.name(folder)}
        for split, matrix in matrices.items():
            writer.add_interactions(split, matrix.rows, matrix.columns)
        for modality, rows in features.items():
            for start in range(0, num_items, _ROWS_PER_CHUNK):
                writer.add_features(modality, storable(rows[start : start + _ROWS_PER_CHUNK]))
        writer.add_ids("users", pa.array(np.arange(num_users)))
        writer.add_ids("items", pa.array(np.arange(num_items)))
        if facts:
            facts.write(writer, num_items)
    used = {*splits.values(), *FEATURES.values(), *((FACTS, RELATIONS) if facts else ())}
    of_facts = facts.notes(num_items) if facts else ()
    return ImportReport(tuple(missing), (*_notes(there, matrices), *of_facts, *_left_aside(set(names) - used)))


def _read_facts(folder: str, names: Collection[str], wrong: Mistakes, *, num_items: int) -> PublishedKnowledge | None:
    """Return the folder's knowledge graph, if it has one; what is wrong with it is added to the mistakes."""
    if FACTS not in names:
        return None
    relations = storage.join(folder, RELATIONS) if RELATIONS in names else None
    with wrong.collected():
        return read_knowledge(storage.join(folder, FACTS), relations, num_items=num_items)
    return None


def _disagreements(
    paths: Mapping[Split, str], matrices: Mapping[Split, Pattern], features: dict[str, npt.NDArray[Any]]
) -> Iterator[str]:
    """Yield which files have another shape than the training matrix."""
    num_users, num_items = matrices["train"].shape
    for split, matrix in matrices.items():
        if matrix.shape != (num_users, num_items):
            yield (
                f"{paths[split]} has shape {matrix.shape} but {storage.name(paths['train'])} has "
                f"({num_users}, {num_items}); they must agree"
            )
    for modality, rows in features.items():
        if rows.shape[0] != num_items:
            yield (
                f"{FEATURES[modality]}: modality '{modality}' has {rows.shape[0]} feature rows but there are "
                f"{num_items} items; give one row per item"
            )


def _read_matrices(paths: Mapping[Split, str], wrong: Mistakes) -> dict[Split, Pattern]:
    """Return the pickled matrices of the splits; what is wrong with the others is added to the mistakes."""
    with scratch_folder("diffmm-import-") as folder:
        local = {}
        for uri in paths.values():
            with wrong.collected():
                local[uri] = _local_copy(uri, folder)
        found = read_patterns(local, folder)
    matrices = {}
    for split, uri in paths.items():
        matrix = found.get(uri)
        if isinstance(matrix, Pattern):
            matrices[split] = matrix
        elif matrix is not None:
            wrong.append(matrix)
    return matrices


def _local_copy(uri: str, folder: str) -> str:
    """Return the local path of a regular file, or of its copy in a folder if it lies on a store."""
    if storage.is_remote(uri):
        place = os.path.join(folder, storage.name(uri))
        storage.download(uri, place)
        return place
    with storage.open_file(uri):
        return os.path.abspath(uri)


def _notes(paths: Mapping[Split, str], matrices: Mapping[Split, Pattern]) -> Iterator[str]:
    """Say what of the matrices might surprise."""
    for split, matrix in matrices.items():
        if matrix.num_zeros:
            yield f"{paths[split]}: {matrix.num_zeros:,} stored zeros are no interactions"
    if "valid" not in matrices or not matrices["valid"].keys.size:
        yield NO_VALIDATION
    yield from _overlaps(matrices)


def _overlaps(matrices: Mapping[Split, Pattern]) -> list[str]:
    """Say how many interactions stand in two splits, since a masked one can never be ranked."""
    notes = []
    for first, second in combinations(matrices, 2):
        shared = np.intersect1d(matrices[first].keys, matrices[second].keys, assume_unique=True).size
        if shared:
            notes.append(f"{shared} interactions stand in both {first} and {second}; they are masked when ranking")
    return notes


def _left_aside(names: Collection[str]) -> list[str]:
    """Say which of a folder's files are not read."""
    others = [name for name in sorted(names) if not name.startswith((".", "_"))]
    if not others:
        return []
    shown = ", ".join(others[:_SHOWN]) + (f" and {len(others) - _SHOWN:,} more" if len(others) > _SHOWN else "")
    return [f"left aside, for there is no use for them yet: {shown}"]
