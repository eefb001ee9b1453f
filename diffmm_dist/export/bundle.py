"""The export bundle: everything needed to recommend, readable with pyarrow alone (docs/data-format.md).

``users.arrow`` and ``items.arrow`` hold the original id and the embedding of each row, ``seen.arrow`` the pairs of row
numbers that users know already, ``config.arrow`` the run's settings, ``weights.safetensors`` the model's tensors, and
``bundle.json``, written last, what there is.
"""

import json
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import safetensors.torch
import torch
from torch import Tensor
from typing_extensions import TypedDict

from diffmm_dist import storage
from diffmm_dist.config.render import flatten
from diffmm_dist.data.checks import check_ids
from diffmm_dist.data.schema import ROWS_PER_BATCH
from diffmm_dist.data.training import shard_interactions
from diffmm_dist.errors import UserError, one_line
from diffmm_dist.sparse import CSR
from diffmm_dist.train.trained import TrainedRun

MARKER = "bundle.json"
FORMAT_NAME = "diffmm_dist bundle"
FORMAT_VERSION = 1
USERS, ITEMS, SEEN, CONFIG, WEIGHTS = (
    "users.arrow", "items.arrow", "seen.arrow", "config.arrow", "weights.safetensors"
)  # fmt: skip


def export_bundle(run: TrainedRun, out: str, *, force: bool = False) -> None:
    """Write the bundle of a trained run to a folder or an s3:// prefix.

    Seen are the training and the validation interactions: what was known when the best epoch was chosen.

    Raises:
        UserError: the place is taken or cannot be written.
    """
    shard = run.data.shard
    # A partitioned dataset's rows go back into the order of their ids, so that the bundle does not depend on it.
    user_rows, item_rows = torch.argsort(shard.user_ids), shard.item_rows
    user_embeddings, item_embeddings = (
        rows[order] for rows, order in zip(run.model.embeddings(), (user_rows, item_rows), strict=True)
    )
    valid = shard_interactions(run.dataset, "valid", shard)
    seen = _union(run.data.interactions, valid).to(torch.device("cpu")).select(user_rows.cpu())
    ids = {
        kind: run.dataset.original_ids(kind).take(order.cpu().numpy())
        for kind, order in (("users", user_rows), ("items", item_rows))
    }
    settings = flatten(run.config)
    weights = {name: tensor.contiguous().cpu() for name, tensor in run.model.state_dict().items()}
    with storage.staged_folder(out, marker=MARKER, force=force) as staging:
        _write_table(storage.join(staging, USERS), _embedding_table(ids["users"], user_embeddings))
        _write_table(storage.join(staging, ITEMS), _embedding_table(ids["items"], item_embeddings))
        _write_table(
            storage.join(staging, SEEN), pa.table({"user": seen.row_ids.numpy(), "item": seen.indices.numpy()})
        )
        _write_table(
            storage.join(staging, CONFIG),
            pa.table({"key": list(settings), "value": [json.dumps(value) for value in settings.values()]}),
        )
        storage.write_bytes(storage.join(staging, WEIGHTS), safetensors.torch.save(weights))
        names = (USERS, ITEMS, SEEN, CONFIG, WEIGHTS)
        storage.write_json(
            storage.join(staging, MARKER),
            Marker(
                format=FORMAT_NAME,
                version=FORMAT_VERSION,
                model=run.config.model.name,
                best_epoch=run.best_epoch,
                num_users=user_embeddings.shape[0],
                num_items=item_embeddings.shape[0],
                embedding_dim=user_embeddings.shape[1],
                dataset=run.dataset.manifest.fingerprint,
                files={name: storage.sha256(storage.join(staging, name)) for name in names},
            ),
        )


class Marker(TypedDict):
    """bundle.json."""

    format: str
    version: int
    model: str
    best_epoch: int
    num_users: int
    num_items: int
    embedding_dim: int
    dataset: str
    files: dict[str, str]


@dataclass(frozen=True)
class Bundle:
    """A bundle in memory.

    Attributes:
        user_ids: original ids, int64 or string, in row order.
        item_ids: likewise.
        user_embeddings: float32 (U, d).
        item_embeddings: float32 (I, d).
        seen: what users know already (U x I).
    """

    user_ids: pa.ChunkedArray
    item_ids: pa.ChunkedArray
    user_embeddings: Tensor
    item_embeddings: Tensor
    seen: CSR


def read_bundle(uri: str) -> Bundle:
    """Read a bundle.

    Raises:
        UserError: there is none, or a file of it is missing or damaged.
    """
    place = storage.join(uri, MARKER)
    if not storage.exists(place):
        raise UserError(f"{uri} is not a complete bundle (it has no {MARKER}); make one with `export`")
    marker: Marker = storage.read_record(place, Marker, remedy="export the run again")
    if (marker["format"], marker["version"]) != (FORMAT_NAME, FORMAT_VERSION):
        raise UserError(f"{place} is not a bundle of this version of diffmm_dist; export the run again")
    users, items = (_read_table(storage.join(uri, name), "id", "embedding") for name in (USERS, ITEMS))
    seen = _read_table(storage.join(uri, SEEN), "user", "item")
    if (users.num_rows, items.num_rows) != (marker["num_users"], marker["num_items"]):
        raise UserError(f"{uri} holds other numbers of users and items than its {MARKER} says; export the run again")
    pairs = [seen.column(name).to_numpy() for name in ("user", "item")]
    for kind, ids, count in zip(("user", "item"), pairs, (users.num_rows, items.num_rows), strict=True):
        check_ids(ids, count, kind=kind, where=storage.join(uri, SEEN))
    rows, columns = (torch.from_numpy(ids.copy()) for ids in pairs)
    return Bundle(
        users.column("id"),
        items.column("id"),
        _matrix(users),
        _matrix(items),
        CSR.from_pairs(rows, columns, num_rows=users.num_rows, num_columns=items.num_rows),
    )


def _embedding_table(ids: pa.ChunkedArray, rows: Tensor) -> pa.Table:
    flat = pa.array(rows.cpu().numpy().reshape(-1))
    embeddings = pa.FixedSizeListArray.from_arrays(flat, rows.shape[1])
    return pa.table({"id": ids, "embedding": embeddings})


def _matrix(table: pa.Table) -> Tensor:
    column = table.column("embedding")
    values: npt.NDArray[np.float32] = np.concatenate(
        [np.empty(0, np.float32), *(chunk.flatten().to_numpy(zero_copy_only=False) for chunk in column.chunks)]
    )
    return torch.from_numpy(values.reshape(table.num_rows, column.type.list_size))


def _union(first: CSR, second: CSR) -> CSR:
    return CSR.from_pairs(
        torch.cat([first.row_ids, second.row_ids]),
        torch.cat([first.indices, second.indices]),
        num_rows=first.num_rows,
        num_columns=first.num_columns,
    )


def _write_table(uri: str, table: pa.Table) -> None:
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    with (
        storage.replacing_file(uri) as file,
        pa.PythonFile(file, mode="w") as sink,
        pa.ipc.new_file(sink, table.schema, options=options) as writer,
    ):
        writer.write_table(table, max_chunksize=ROWS_PER_BATCH)


def _read_table(uri: str, *columns: str) -> pa.Table:
    try:
        with storage.open_input(uri) as source:
            table = pa.ipc.open_file(source).read_all()
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{uri} is damaged ({one_line(error)}); export the run again") from error
    if table.column_names != list(columns):
        raise UserError(f"{uri} has columns {', '.join(table.column_names)}; export the run again")
    return table
