"""The folders published with DiffMM: pickled SciPy matrices and NumPy features."""

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
from diffmm_dist.data.importers.report import ImportReport
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
    matrices = {split: _read_matrix(paths[name]) for split, name in MATRICES.items() if name not in missing}
    for needed in (MATRICES["train"], MATRICES["test"]):
        if needed in missing:
            raise UserError(f"{paths[needed]} is missing; a DiffMM folder must have it")
    num_users, num_items = matrices["train"].shape
    for split, matrix in matrices.items():
        if matrix.shape != (num_users, num_items):
            raise UserError(
                f"{paths[MATRICES[split]]} has shape {matrix.shape} but {MATRICES['train']} has "
                f"({num_users}, {num_items}); they must agree"
            )
    features = {
        modality: _open_features(paths[name], num_items, modality)
        for modality, name in FEATURES.items()
        if name not in missing
    }
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
    return ImportReport(tuple(missing), tuple(_overlaps(matrices)))


def _read_matrix(path: str) -> sp.csr_matrix:
    """Read one pickled matrix as CSR of ones, checking its coordinates before SciPy's own code relies on them."""
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
    present = values != 0
    ones = np.ones(int(present.sum()), dtype=np.float32)
    return sp.csr_matrix((ones, (rows[present], columns[present])), shape=(num_rows, num_columns))


def _open_features(path: str, num_items: int, modality: str) -> npt.NDArray[Any]:
    rows = open_rows(path, kinds="f", needed="float rows")
    if rows.shape[0] != num_items:
        raise UserError(
            f"{path}: modality '{modality}' has {rows.shape[0]} feature rows but there are {num_items} items; "
            "give one row per item"
        )
    return rows


def _overlaps(matrices: dict[Split, sp.csr_matrix]) -> list[str]:
    """Say how many interactions stand in two splits, since a masked one can never be ranked."""
    notes = []
    for first, second in combinations(matrices, 2):
        shared = int(matrices[first].multiply(matrices[second]).nnz)
        if shared:
            notes.append(f"{shared} interactions stand in both {first} and {second}; they are masked when ranking")
    return notes
