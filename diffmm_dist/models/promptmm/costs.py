"""What PromptMM costs: memory (models/common/costs.py), work and traffic (models/common/work.py).

Symbols: U users, I items, E interactions, L layers, d embedding, F feature width, M modalities, C candidates, B batch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from diffmm_dist.graph import relation
from diffmm_dist.models.common import costs
from diffmm_dist.models.common.costs import FLOAT, INT, ModelMemory, Parts, Share
from diffmm_dist.models.common.work import (
    ADAM_ACCESSES,
    EXCHANGES_PER_PRODUCT,
    Cuts,
    Traffic,
    Work,
    gathered_bytes,
    product_flop,
    ranking_exchanges,
    real_rows_sent,
    sent_bytes,
)
from diffmm_dist.models.promptmm.phases import num_batches

_REPLICAS_EXCHANGES = 1  # the sum of the gradients of what every worker has whole
_MOMENTS = 2
_TOKENS_COVARIANCES = 6  # matrices of doubles of the features' width, while a modality's tokens are made: measured
_STEP_TABLES = 9  # of users and items that a teacher's step holds besides layers and modalities, with their gradients
_LAYER_TABLES, _MODAL_TABLES, _REDUCED_TABLES = 2, 4, 5  # of a layer; of a modality; of its reduced features, of items
_STUDENT_TABLES = 4  # the layers' mean, its gradient, that of the regularised rows, and one in between
_CANDIDATE_ROWS = 2.3  # of each candidate: the student's and their gradients, and scores
_ROW_ACCESSES = 30  # of each row in a step besides the gathered ones
_MODAL_ACCESSES = 24  # of each row of a modality


@dataclass(frozen=True)
class Sizes:
    """What the costs depend on, besides the data.

    Attributes:
        dim: d of the teacher; the width of a given one is not known before it is read, and counts as this.
        num_layers: L_T.
        widths: F of each modality; none where the teacher is given.
        student_dim: of the student.
        student_layers: L_S.
        targets: ``frozen``, ``prompted``, ``noisy`` or ``given``.
        lists: C - 1, 0 without lists.
        released: the student meets misplaced rows and lists are drawn up to the largest item, as released.
        replicated: every worker has some of what distills whole.
        batch_size: B.
    """

    dim: int
    num_layers: int
    widths: Sequence[int]
    student_dim: int
    student_layers: int
    targets: str
    lists: int
    released: bool
    replicated: bool
    batch_size: int

    @property
    def num_views(self) -> int:
        """Tables of the teacher that lists and embeddings follow."""
        return max(1, len(self.widths))


def memory(share: Share, sizes: Sizes, *, dgl: bool) -> ModelMemory:
    """Return what PromptMM needs.

    Args:
        share: the data.
        sizes: of the model.
        dgl: whether DGL may propagate.
    """
    rows = share.users + share.items
    table, student = rows * sizes.dim * FLOAT, rows * sizes.student_dim * FLOAT
    features = share.items * sum(sizes.widths) * FLOAT
    own = sizes.targets != "given"
    weights = sum((width + 1) * sizes.dim * FLOAT for width in sizes.widths)
    kept = {
        "interactions": costs.interactions(share),
        "graph": costs.graph(share, dgl=dgl),
        "features": features,
        "tables": own * 2 * table + student + weights,  # of the teacher ID embeddings and tokens
        "samplers": (1 + bool(sizes.lists)) * share.interactions * INT,
    }
    phases = {"distill": _distill(share, sizes, _student_step(share, sizes))}
    if own:
        phases = {"teach": _teach(share, sizes)} | phases
    return ModelMemory(
        kept=kept if own else {name: size for name, size in kept.items() if name != "features"},
        phases=phases,
        embedding=_forward(share, sizes) if own else 2 * student,
        width=max(sizes.dim * own, sizes.student_dim),
        trained=own * 2 * table + student + weights,
        largest=max(share.users, share.items) * max(sizes.dim, sizes.student_dim) * FLOAT,
        reading={"tokens": _TOKENS_COVARIANCES * max(sizes.widths, default=0) ** 2 * 2 * FLOAT},
    )


def _forward(share: Share, sizes: Sizes) -> int:
    """Return the bytes of a teacher's forward pass, without what it keeps for the backward one."""
    rows, num_modal = share.users + share.items, len(sizes.widths)
    tables = sizes.num_layers + 3 + 2 * num_modal
    return (rows * tables + share.items * num_modal) * sizes.dim * FLOAT


def _step_bytes(share: Share, sizes: Sizes) -> int:
    """Return the bytes of a teacher's pass, forward and backward."""
    rows, num_modal = share.users + share.items, len(sizes.widths)
    tables = _STEP_TABLES + _LAYER_TABLES * sizes.num_layers + _MODAL_TABLES * num_modal
    return (rows * tables + share.items * _REDUCED_TABLES * num_modal) * sizes.dim * FLOAT


def _teach(share: Share, sizes: Sizes) -> Parts:
    table = (share.users + share.items) * sizes.dim * FLOAT
    step = {"moments": _MOMENTS * table, "propagation": _step_bytes(share, sizes)}
    return costs.ranking_phase(share, gradients=table, step=step, dim=sizes.dim, batch=sizes.batch_size)


def _student_step(share: Share, sizes: Sizes) -> Parts:
    rows = share.users + share.items
    constants = {"frozen": 1 + len(sizes.widths), "given": 1, "prompted": len(sizes.widths), "noisy": 2}
    views = rows * constants[sizes.targets] * sizes.dim * FLOAT
    if sizes.targets == "prompted":
        views += _step_bytes(share, sizes)
    if sizes.targets == "noisy":
        views += _forward(share, sizes)
    return {"teacher": views, "propagation": _STUDENT_TABLES * rows * sizes.student_dim * FLOAT}


def _distill(share: Share, sizes: Sizes, step: Parts) -> Parts:
    table = (share.users + share.items) * sizes.student_dim * FLOAT
    listed = -(-sizes.batch_size // share.num_workers) * (1 + sizes.lists)
    kept_views = sizes.num_views if sizes.targets == "prompted" else 1  # without gradients one after the other
    width = _CANDIDATE_ROWS * sizes.student_dim + kept_views * sizes.dim
    parts = {"moments": _MOMENTS * table, **step, "lists": int(listed * width * FLOAT)}
    return costs.ranking_phase(share, gradients=table, step=parts, dim=sizes.student_dim, batch=sizes.batch_size)


def work(share: Share, sizes: Sizes) -> Mapping[str, Work]:
    """Return what one worker does in an epoch."""
    steps = num_batches(share.num_interactions, sizes.batch_size)
    distill = _epoch(share, sizes, _distill_step(share, sizes), steps)
    if sizes.targets == "given":
        return {"distill": distill}
    return {"teach": _epoch(share, sizes, _teach_step(share, sizes), steps), "distill": distill}


def _epoch(share: Share, sizes: Sizes, step: Work, steps: int) -> Work:
    """Return the work of an epoch, of which a step takes so much besides the exchanges that its batch takes."""
    exchanges = steps * step.exchanges + ranking_exchanges(steps, sizes.batch_size)
    return Work(steps, steps * step.flops, steps * step.memory_bytes, exchanges if share.num_workers > 1 else 0)


def _teacher_pass(share: Share, sizes: Sizes, *, products: int) -> Work:
    """Return one pass, with so many products of the features and a modality's map."""
    size, num_modal = share.num_workers, len(sizes.widths)
    rows, items = (share.num_users + share.num_items) / size, share.num_items / size
    flops = sum(products * product_flop(items, width, sizes.dim) for width in sizes.widths)
    flops += 3 * product_flop(rows, sizes.dim, sizes.dim) + num_modal * 6 * product_flop(items, sizes.dim, sizes.dim)
    edges = share.num_interactions * (sizes.num_layers + num_modal) / size
    moved = gathered_bytes(edges, sizes.dim)
    moved += rows * sizes.dim * (_ROW_ACCESSES + num_modal * _MODAL_ACCESSES) * FLOAT
    return Work(1, flops, moved, (sizes.num_layers + num_modal) * EXCHANGES_PER_PRODUCT)


def _teach_step(share: Share, sizes: Sizes) -> Work:
    whole = _teacher_pass(share, sizes, products=2)
    rows = (share.num_users + share.num_items) / share.num_workers
    moved = whole.memory_bytes + rows * sizes.dim * ADAM_ACCESSES * FLOAT
    return Work(1, whole.flops, moved, whole.exchanges + _REPLICAS_EXCHANGES)


def _distill_step(share: Share, sizes: Sizes) -> Work:
    size = share.num_workers
    rows, items = (share.num_users + share.num_items) / size, share.num_items / size
    moved = gathered_bytes(share.num_interactions * sizes.student_layers / size, sizes.student_dim)
    moved += rows * sizes.student_dim * (ADAM_ACCESSES + 8) * FLOAT
    moved += items * sizes.num_views * sizes.student_dim * 10 * FLOAT
    moved += sizes.batch_size / size * (1 + sizes.lists) * (1 + sizes.num_views) * sizes.dim * 4 * FLOAT
    taught = _teacher_pass(share, sizes, products=0)
    taught_exchanges = {
        "prompted": taught.exchanges,
        "noisy": len(sizes.widths) * EXCHANGES_PER_PRODUCT // 2,
    }.get(sizes.targets, 0)
    exchanges = sizes.student_layers * (EXCHANGES_PER_PRODUCT + 2 * sizes.released) + taught_exchanges
    exchanges += sizes.replicated * _REPLICAS_EXCHANGES + (sizes.released and sizes.lists > 0)
    share_of_pass = {"prompted": 1.0, "noisy": 0.5}.get(sizes.targets, 0.0)
    return Work(
        1,
        share_of_pass * taught.flops,
        moved + share_of_pass * taught.memory_bytes,
        exchanges,
    )


def traffic(cuts: Cuts, sizes: Sizes) -> list[Traffic]:
    """Return what each worker sends in a step of each phase: the rows of the products over the graph."""
    found: list[Traffic] = []
    num_modal = len(sizes.widths)
    for rows in real_rows_sent(cuts):
        passed = sent_bytes(cuts, (sizes.num_layers + num_modal) * sum(rows), sizes.dim)
        taught = {"prompted": passed, "noisy": sent_bytes(cuts, num_modal * sum(rows), sizes.dim) // 2}.get(
            sizes.targets, 0
        )
        distill = sent_bytes(cuts, sizes.student_layers * sum(rows), sizes.student_dim) + taught
        phases = {"teach": {relation.TRAFFIC: passed}} if sizes.targets != "given" else {}
        found.append(phases | {"distill": {relation.TRAFFIC: distill}})
    return found
