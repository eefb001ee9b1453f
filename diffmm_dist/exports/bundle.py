"""The export bundle: everything needed to recommend, readable with pyarrow alone (docs/data-format.md).

``users.arrow`` and ``items.arrow`` hold the original id and the embedding of each row, ``seen.arrow`` the pairs of row
numbers that users know already, ``config.arrow`` the run's settings, ``weights.safetensors`` the model's tensors, and
``bundle.json``, written last, what there is.
"""

import json
from typing import NamedTuple

import pyarrow as pa
import safetensors.torch
import torch

from diffmm_dist import storage
from diffmm_dist.bundles.files import (
    FORMAT_NAME,
    FORMAT_VERSIONS,
    ITEMS,
    MARKER,
    SEEN,
    USERS,
    Floats,
    Ints,
    Marker,
    embedding_table,
    write_table,
)
from diffmm_dist.bundles.index import IndexKind, index_tables
from diffmm_dist.bundles.pairs import Pairs
from diffmm_dist.bundles.rows import Rows, check_finite_rows
from diffmm_dist.config.render import flatten
from diffmm_dist.data.training import shard_interactions
from diffmm_dist.exports.content import content_tables
from diffmm_dist.exports.knowledge import knowledge_tables
from diffmm_dist.sparse import CSR
from diffmm_dist.storage import check_place
from diffmm_dist.training.trained import TrainedRun, load_trained

CONFIG, WEIGHTS = "config.arrow", "weights.safetensors"


def export_bundle(run: TrainedRun, out: str, *, force: bool = False, index: IndexKind | None = None) -> None:
    """Write the bundle of a trained run to a folder or an address.

    Seen are the training and the validation interactions: what was known when the best epoch was chosen.

    Args:
        run: the run.
        out: where to write.
        force: replace the bundle that is there.
        index: an approximate index of the items to build.

    Raises:
        UserError: the place is taken or cannot be written, or the embeddings are not finite.
    """
    found = _collected(run)
    settings = flatten(run.config)
    weights = {name: tensor.contiguous().cpu() for name, tensor in run.model.deployed().state_dict().items()}
    further = {
        **knowledge_tables(run),
        **content_tables(run.dataset, found.item_rows, *found.embeddings, found.seen),
        **({} if index is None else index_tables(index, Rows([found.embeddings[1]], found.embeddings[1].shape[1]))),
    }
    with storage.staged_folder(out, marker=MARKER, force=force) as staging:
        for name, ids, embeddings in zip((USERS, ITEMS), found.ids, found.embeddings, strict=True):
            write_table(storage.join(staging, name), embedding_table(ids, embeddings), compressed=False)
        write_table(storage.join(staging, SEEN), pa.table({"user": found.seen.rows(), "item": found.seen.items}))
        write_table(
            storage.join(staging, CONFIG),
            pa.table({"key": list(settings), "value": [json.dumps(value) for value in settings.values()]}),
        )
        storage.write_bytes(storage.join(staging, WEIGHTS), safetensors.torch.save(weights))
        for name, table in further.items():
            write_table(storage.join(staging, name), table)
        names = (USERS, ITEMS, SEEN, CONFIG, WEIGHTS, *further)
        num_users, num_items = (len(embeddings) for embeddings in found.embeddings)
        marker = Marker(
            format=FORMAT_NAME,
            version=FORMAT_VERSIONS[bool(further)],
            model=run.config.model.name,
            best_epoch=run.best_epoch,
            num_users=num_users,
            num_items=num_items,
            num_seen=len(found.seen.items),
            embedding_dim=found.embeddings[0].shape[1],
            dataset=run.dataset.manifest.fingerprint,
            files={name: storage.sha256(storage.join(staging, name)) for name in names},
        )
        if further:
            marker["further"] = {name: table.num_rows for name, table in further.items()}
        storage.write_record(storage.join(staging, MARKER), marker)


def export_run(run: str, out: str, *, force: bool = False, index: IndexKind | None = None) -> TrainedRun:
    """Write the bundle of a run folder, as ``export_bundle`` does, and return the run.

    Raises:
        UserError: there is no such run; the place is taken, which is found out before the run is read.
    """
    check_place(out, marker=MARKER, force=force, sources=[run])
    trained = load_trained(run)
    export_bundle(trained, out, force=force, index=index)
    return trained


class _Collected(NamedTuple):
    """What a run has of users and of items, in the order of their ids, and the items' rows in its dataset."""

    ids: tuple[pa.ChunkedArray, pa.ChunkedArray]
    embeddings: tuple[Floats, Floats]
    seen: Pairs
    item_rows: Ints


def _collected(run: TrainedRun) -> _Collected:
    """Return a run's rows in the order of their ids, so that a bundle does not depend on a dataset's partition."""
    shard = run.data.shard
    orders = torch.argsort(shard.user_ids), shard.item_rows
    users, items = (rows[order].cpu().numpy() for rows, order in zip(run.model.embeddings(), orders, strict=True))
    for kind, rows in (("user", users), ("item", items)):
        check_finite_rows(rows, f"the {kind}s of the run's best epoch {run.best_epoch}")
    valid = shard_interactions(run.dataset, "valid", shard)
    seen = _union(run.data.interactions, valid).to(torch.device("cpu")).select(orders[0].cpu())
    of_users, of_items = (
        run.dataset.original_ids(kind).take(order.cpu().numpy())
        for kind, order in zip(("users", "items"), orders, strict=True)
    )
    pairs = Pairs(seen.indptr.numpy(), seen.indices.numpy())
    return _Collected((of_users, of_items), (users, items), pairs, orders[1].cpu().numpy())


def _union(first: CSR, second: CSR) -> CSR:
    return CSR.from_pairs(
        torch.cat([first.row_ids, second.row_ids]),
        torch.cat([first.indices, second.indices]),
        num_rows=first.num_rows,
        num_columns=first.num_columns,
    )
