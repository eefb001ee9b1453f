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

from diffmm_dist import storage
from diffmm_dist.config.render import flatten
from diffmm_dist.data.checks import check_ids, first_not_finite
from diffmm_dist.data.training import shard_interactions
from diffmm_dist.errors import DamagedError
from diffmm_dist.export.knowledge import knowledge_tables
from diffmm_dist.runs.bundle_files import (
    FORMAT_NAME,
    FORMAT_VERSIONS,
    ITEMS,
    MARKER,
    USERS,
    Marker,
    embedding_schemas,
    embedding_table,
    read_marker,
    read_table,
    write_table,
)
from diffmm_dist.sparse import CSR
from diffmm_dist.training.trained import TrainedRun

SEEN, CONFIG, WEIGHTS = "seen.arrow", "config.arrow", "weights.safetensors"
_SEEN_SCHEMA = pa.schema([pa.field("user", pa.int64()), pa.field("item", pa.int64())])


def export_bundle(run: TrainedRun, out: str, *, force: bool = False) -> None:
    """Write the bundle of a trained run to a folder or an address.

    Seen are the training and the validation interactions: what was known when the best epoch was chosen.

    Raises:
        UserError: the place is taken or cannot be written, or the embeddings are not finite.
    """
    shard = run.data.shard
    # A partitioned dataset's rows go back into the order of their ids, so that the bundle does not depend on it.
    user_rows, item_rows = torch.argsort(shard.user_ids), shard.item_rows
    user_embeddings, item_embeddings = (
        rows[order] for rows, order in zip(run.model.embeddings(), (user_rows, item_rows), strict=True)
    )
    for kind, rows in (("user", user_embeddings), ("item", item_embeddings)):
        _check_finite(rows, f"the {kind}s of the run's best epoch {run.best_epoch}")
    valid = shard_interactions(run.dataset, "valid", shard)
    seen = _union(run.data.interactions, valid).to(torch.device("cpu")).select(user_rows.cpu())
    ids = {
        kind: run.dataset.original_ids(kind).take(order.cpu().numpy())
        for kind, order in (("users", user_rows), ("items", item_rows))
    }
    settings = flatten(run.config)
    weights = {name: tensor.contiguous().cpu() for name, tensor in run.model.deployed().state_dict().items()}
    with storage.staged_folder(out, marker=MARKER, force=force) as staging:
        write_table(storage.join(staging, USERS), embedding_table(ids["users"], user_embeddings))
        write_table(storage.join(staging, ITEMS), embedding_table(ids["items"], item_embeddings))
        write_table(storage.join(staging, SEEN), pa.table({"user": seen.row_ids.numpy(), "item": seen.indices.numpy()}))
        write_table(
            storage.join(staging, CONFIG),
            pa.table({"key": list(settings), "value": [json.dumps(value) for value in settings.values()]}),
        )
        storage.write_bytes(storage.join(staging, WEIGHTS), safetensors.torch.save(weights))
        further = knowledge_tables(run)
        for name, table in further.items():
            write_table(storage.join(staging, name), table)
        names = (USERS, ITEMS, SEEN, CONFIG, WEIGHTS, *further)
        marker = Marker(
            format=FORMAT_NAME,
            version=FORMAT_VERSIONS[bool(further)],
            model=run.config.model.name,
            best_epoch=run.best_epoch,
            num_users=user_embeddings.shape[0],
            num_items=item_embeddings.shape[0],
            num_seen=seen.indices.numel(),
            embedding_dim=user_embeddings.shape[1],
            dataset=run.dataset.manifest.fingerprint,
            files={name: storage.sha256(storage.join(staging, name)) for name in names},
        )
        if further:
            marker["further"] = {name: table.num_rows for name, table in further.items()}
        storage.write_record(storage.join(staging, MARKER), marker)


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
    """Read a bundle, comparing each file with its checksum.

    Raises:
        UserError: there is none, or a file of it is missing.
        DamagedError: a file of it is not what was exported, or its embeddings are not finite.
    """
    marker = read_marker(uri)
    width = marker["embedding_dim"]
    users, items = (
        read_table(uri, name, marker, embedding_schemas(width), count)
        for name, count in ((USERS, marker["num_users"]), (ITEMS, marker["num_items"]))
    )
    seen = read_table(uri, SEEN, marker, [_SEEN_SCHEMA], marker["num_seen"])
    pairs = [seen.column(name).to_numpy() for name in ("user", "item")]
    for kind, ids, count in zip(("user", "item"), pairs, (users.num_rows, items.num_rows), strict=True):
        check_ids(ids, count, kind=kind, where=storage.join(uri, SEEN))
    user_embeddings, item_embeddings = (_matrix(table, width) for table in (users, items))
    for name, rows in ((USERS, user_embeddings), (ITEMS, item_embeddings)):
        _check_finite(rows, storage.join(uri, name))
    seen_users, seen_items = (torch.from_numpy(ids.copy()) for ids in pairs)
    return Bundle(
        users.column("id"),
        items.column("id"),
        user_embeddings,
        item_embeddings,
        CSR.from_pairs(seen_users, seen_items, num_rows=users.num_rows, num_columns=items.num_rows),
    )


def _check_finite(rows: Tensor, what: str) -> None:
    """Raise a ``DamagedError`` naming the first row that holds NaN or infinity."""
    found = first_not_finite(rows.cpu().numpy())
    if found is not None:
        row, kind, count = found
        raise DamagedError(f"{what}: the embedding in row {row} holds {kind} ({count} such rows); train the run again")


def _matrix(table: pa.Table, width: int) -> Tensor:
    chunks = [chunk.flatten().to_numpy(zero_copy_only=False) for chunk in table.column("embedding").chunks]
    values: npt.NDArray[np.float32] = np.concatenate([np.empty(0, np.float32), *chunks])
    return torch.from_numpy(values.reshape(table.num_rows, width))


def _union(first: CSR, second: CSR) -> CSR:
    return CSR.from_pairs(
        torch.cat([first.row_ids, second.row_ids]),
        torch.cat([first.indices, second.indices]),
        num_rows=first.num_rows,
        num_columns=first.num_columns,
    )
