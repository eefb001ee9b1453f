"""The folders published with DiffMM: pickled SciPy matrices and NumPy features."""

from collections.abc import Iterator
from itertools import combinations
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import scipy.sparse as sp

from diffmm_dist import storage
from diffmm_dist.data.checks import storable
from diffmm_dist.data.importers.arrays import open_rows
from diffmm_dist.data.importers.pickled import SPARSE_MATRIX
from diffmm_dist.data.importers.report import ImportReport, Mistakes
from diffmm_dist.data.schema import Split
from diffmm_dist.data.writer import dataset_writer
from diffmm_dist.errors import UserError, one_line
from diffmm_dist.unpickle import load_pickle

MATRICES: dict[Split, str] = {"train": "trnMat.pkl", "valid": "valMat.pkl", "test": "tstMat.pkl"}
FEATURES = {"visual": "image_feat.npy", "textual": "text_feat.npy", "acoustic": "audio_feat.npy"}
_ROWS_PER_CHUNK = 16_384


def import_diffmm(folder: str, out: str, *, force: bool = False) -> ImportReport:
    """Convert a published DiffMM folder into a dataset.

    Non-zero entries become interactions; ids are the matrices' row and column numbers.

    Args:
        folder: path or s3:// address; holds trnMat.pkl, tstMat.pkl, valMat.pkl if there is one, and any of
            image/text/audio_feat.npy.
        out: the dataset to write.
        force: replace a dataset that is already there.

    Raises:
        UserError: a file is missing, damaged, unsafe or does not fit the others.
    """
    names = storage.list_names(folder)
    if not names:
        raise UserError(f"{folder} is not a folder with files; give the one that holds {MATRICES['train']}")
    missing = [name for name in (*MATRICES.values(), *FEATURES.values()) if name not in names]
    paths = {name: storage.join(folder, name) for name in (*MATRICES.values(), *FEATURES.values())}
    wrong = Mistakes(
        f"{paths[needed]} is missing; a DiffMM folder must have it"
        for needed in (MATRICES["train"], MATRICES["test"])
        if needed in missing
    )
    matrices: dict[Split, sp.csr_matrix] = {}
    features: dict[str, npt.NDArray[Any]] = {}
    notes: list[str] = []
    for split, name in MATRICES.items():
        if name not in missing:
            with wrong.collected():
                matrices[split] = _read_matrix(paths[name], notes)
    for modality, name in FEATURES.items():
        if name not in missing:
            with wrong.collected():
                features[modality] = open_rows(paths[name], kinds="f", needed="float rows")
    if "train" in matrices:
        wrong += _disagreements(paths, matrices, features)
    wrong.check()
    num_users, num_items = matrices["train"].shape
    with dataset_writer(out, num_users=num_users, num_items=num_items, force=force) as writer:
        writer.made_by = {"importer": "diffmm", "source": storage.name(folder)}
        for split, matrix in matrices.items():
            rows = np.repeat(np.arange(num_users), np.diff(matrix.indptr)).astype(np.int64)
            writer.add_interactions(split, rows, matrix.indices.astype(np.int64))
        for modality, rows in features.items():
            for start in range(0, num_items, _ROWS_PER_CHUNK):
                writer.add_features(modality, storable(rows[start : start + _ROWS_PER_CHUNK]))
        writer.add_ids("users", pa.array(np.arange(num_users)))
        writer.add_ids("items", pa.array(np.arange(num_items)))
    return ImportReport(tuple(missing), (*notes, *_overlaps(matrices)))


def _disagreements(
    paths: dict[str, str], matrices: dict[Split, sp.csr_matrix], features: dict[str, npt.NDArray[Any]]
) -> Iterator[str]:
    """Yield which files have another shape than the training matrix."""
    num_users, num_items = matrices["train"].shape
    for split, matrix in matrices.items():
        if matrix.shape != (num_users, num_items):
            yield (
                f"{paths[MATRICES[split]]} has shape {matrix.shape} but {MATRICES['train']} has "
                f"({num_users}, {num_items}); they must agree"
            )
    for modality, rows in features.items():
        if rows.shape[0] != num_items:
            yield (
                f"{paths[FEATURES[modality]]}: modality '{modality}' has {rows.shape[0]} feature rows but there are "
                f"{num_items} items; give one row per item"
            )


def _read_matrix(path: str, notes: list[str]) -> sp.csr_matrix:
    """Read one pickled matrix as CSR of ones, checking its coordinates before SciPy's own code relies on them.

    Args:
        path: the file.
        notes: a sentence about zeros that are stored is added here.
    """
    with storage.open_file(path) as file:
        loaded = load_pickle(file, allowed=SPARSE_MATRIX, source=path)
    if not sp.issparse(loaded):
        raise UserError(f"{path} holds no sparse matrix; save one with pickle.dump(matrix)")
    try:
        if loaded.format in ("bsr", "csc", "csr"):
            loaded.check_format(full_check=True)
        matrix = loaded.tocoo()
        rows, columns, values = (np.asarray(part) for part in (matrix.row, matrix.col, matrix.data))
        num_rows, num_columns = (int(size) for size in matrix.shape)
    except Exception as error:  # attributes come from the pickle and can be anything
        raise UserError(f"{path} holds a damaged sparse matrix: {one_line(error)}") from error
    if min(num_rows, num_columns) < 1:
        raise UserError(f"{path} holds a matrix of {num_rows} users and {num_columns} items; both are needed")
    kinds = (rows.dtype.kind, columns.dtype.kind, values.dtype.kind)
    if kinds[0] not in "iu" or kinds[1] not in "iu" or kinds[2] not in "iufb":
        raise UserError(f"{path} holds a sparse matrix of {values.dtype}; numbers are needed")
    for kind, ids, count in (("user", rows, num_rows), ("item", columns, num_columns)):
        if ids.size and not 0 <= ids.min() <= ids.max() < count:
            bad = ids[(ids < 0) | (ids >= count)][0]
            raise UserError(f"{path}: {kind} id {bad} is out of range; the matrix has {count} {kind}s")
    unfit = np.flatnonzero(~(np.isfinite(values) & (values >= 0)))
    if unfit.size:
        first = unfit[0]
        raise UserError(
            f"{path}: the entry of user {rows[first]} and item {columns[first]} is {values[first]} ({unfit.size} such "
            "entries); an interaction is a positive number, so drop or mend the others"
        )
    present = values != 0
    num_zeros = int(values.size - present.sum())
    if num_zeros and loaded.format in ("coo", "csc", "csr"):  # blocks and diagonals are padded with zeros
        notes.append(f"{path}: {num_zeros:,} stored zeros are no interactions")
    ones = np.ones(int(present.sum()), dtype=np.float32)
    return sp.csr_matrix((ones, (rows[present], columns[present])), shape=(num_rows, num_columns))


def _overlaps(matrices: dict[Split, sp.csr_matrix]) -> list[str]:
    """Say how many interactions stand in two splits, since a masked one can never be ranked."""
    notes = []
    for first, second in combinations(matrices, 2):
        shared = int(matrices[first].multiply(matrices[second]).nnz)
        if shared:
            notes.append(f"{shared} interactions stand in both {first} and {second}; they are masked when ranking")
    return notes
