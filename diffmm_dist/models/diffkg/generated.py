"""The generated graph: facts of the knowledge graph that the denoiser chooses (README.md, "rebuild")."""

import torch
from torch import Tensor

from diffmm_dist.data.knowledge import Facts, Knowledge
from diffmm_dist.graph.relation import TRAFFIC
from diffmm_dist.parallel.collectives import send_to_owners
from diffmm_dist.parallel.random import RandomStream
from diffmm_dist.parallel.world import World
from diffmm_dist.sparse import CSR

_PLAN = f"{TRAFFIC}_plan"


def generated_facts(knowledge: Knowledge, tails: Tensor, world: World) -> Facts:
    """Return the facts of own heads that are chosen, or whose other direction is; every worker calls it.

    Args:
        knowledge: the knowledge graph.
        tails: node ids that each own node has chosen, int64 (own nodes, k); -1 where it has chosen none. Those that are
            no facts are dropped.
        world: the workers.
    """
    heads = torch.arange(tails.shape[0], device=tails.device)[:, None].expand_as(tails)
    heads, tails = heads[tails >= 0], tails[tails >= 0]
    known = knowledge.facts.pairs.contains(heads, tails)
    heads, tails = heads[known], tails[known]
    other_heads, other_tails = _reversed(knowledge, heads, tails, world)
    pairs = CSR.from_pairs(
        torch.cat([heads, other_heads]),
        torch.cat([tails, other_tails]),
        num_rows=knowledge.own_ids.numel(),
        num_columns=knowledge.num_nodes,
    )
    return Facts(pairs, knowledge.facts.relation_of(pairs.row_ids, pairs.indices))


def _reversed(knowledge: Knowledge, heads: Tensor, tails: Tensor, world: World) -> tuple[Tensor, Tensor]:
    """Return the other direction of facts, of all workers', that have own heads then."""
    nodes = knowledge.nodes
    pairs = torch.stack([nodes.rows[tails], knowledge.own_ids[heads]], dim=1)
    pairs = send_to_owners(pairs, nodes.ownership.owner_of(pairs[:, 0].contiguous()), world, purpose=_PLAN)
    return pairs[:, 0] - nodes.ownership.own.start, pairs[:, 1]


def dropped(facts: Facts, knowledge: Knowledge, keep_prob: float, stream: RandomStream) -> Facts:
    """Return each fact with a probability, whatever becomes of its other direction; draws are keyed by its ends."""
    if keep_prob == 1:
        return facts
    ids = knowledge.own_ids[facts.pairs.row_ids] * knowledge.num_nodes + facts.pairs.indices
    return facts.filter(stream.uniform(ids) < keep_prob)


def united(first: Facts, second: Facts) -> Facts:
    """Return the facts of both, each once; a pair has the same relation in both."""
    num_columns = first.pairs.num_columns
    pairs = CSR.from_pairs(
        torch.cat([first.pairs.row_ids, second.pairs.row_ids]),
        torch.cat([first.pairs.indices, second.pairs.indices]),
        num_rows=first.pairs.num_rows,
        num_columns=num_columns,
    )
    relations = first.relation_of(pairs.row_ids, pairs.indices)
    return Facts(pairs, torch.where(relations >= 0, relations, second.relation_of(pairs.row_ids, pairs.indices)))
