"""AdaGCL's operations and its whole step on shards equal their dense twins and the golden numbers."""

from functools import partial
from itertools import product

import pytest
import torch

from diffmm_dist.graph.entries import (
    entry_keys,
    entry_values,
    num_entries,
    propagate_entries,
    row_sums,
    sums_of_ends,
)
from diffmm_dist.graph.hetero import REAL, HeteroGraph
from diffmm_dist.graph.relation import Relation
from diffmm_dist.losses import batch_contrastive, equations
from diffmm_dist.losses.batch_contrastive import Repeats, batch_info_nce
from diffmm_dist.models.adagcl.phases import Draws
from diffmm_dist.models.common.ranking_batch import RankingBatch
from diffmm_dist.parallel.collectives import all_reduce_sum, worker_counts
from diffmm_dist.parallel.random import RandomStream
from diffmm_dist.parallel.shard import Shard
from tests.distributed.test_propagation import GRAPHS, NUM_ITEMS, NUM_USERS, own_of, shards
from tests.support.builders import as_matrix, own_rows, random_rows
from tests.support.golden_adagcl import FILES, Golden, batch_of, build, draws_of, named_parameters, own_part
from tests.support.optional import dgl_or_skip
from tests.support.workers import SIZES, cuts, on_workers, shard_with

NUM_NODES = NUM_USERS + NUM_ITEMS
WIDTH = 4


def dense_of(relation, values):
    """The matrix of all nodes with these values, as far as this worker has its entries."""
    keys = entry_keys(relation)
    places = keys // NUM_NODES, keys % NUM_NODES
    return torch.zeros(NUM_NODES, NUM_NODES).index_put(places, values)


def values_of(keys, seed):
    """Values that depend on the entry alone."""
    table = random_rows(NUM_NODES, NUM_NODES, seed)
    return table[keys // NUM_NODES, keys % NUM_NODES]


def check_own_values(world):
    """The relation's own values, at their entries, are A^."""
    for shard, graph in product(shards(world), GRAPHS.values()):
        relation = Relation.normalized(own_rows(graph(), shard), shard)
        mine = dense_of(relation, entry_values(relation))
        torch.testing.assert_close(all_reduce_sum(mine, world), as_matrix(Relation.normalized(graph())))
        assert sum(worker_counts(num_entries(relation), world)) == 2 * graph().num_entries + NUM_NODES


def check_products(world):
    """M x of values of one's own: values and gradients, of rows and of values, row sums too."""
    for shard, (name, graph), kernel in product(shards(world), GRAPHS.items(), ("csr", "dgl")):
        relation = Relation.normalized(own_rows(graph(), shard), shard)
        hetero = HeteroGraph({REAL: relation}, kernel=kernel)
        whole = Relation.normalized(graph())
        full_values = values_of(entry_keys(whole), 5).requires_grad_()
        full = random_rows(NUM_USERS, WIDTH, 1).requires_grad_(), random_rows(NUM_ITEMS, WIDTH, 2).requires_grad_()
        matrix = dense_of(whole, full_values)
        weights = random_rows(NUM_NODES, WIDTH, 3)
        expected = matrix @ torch.cat(full)
        ((expected.sin() * weights).sum() + (matrix.sum(dim=1).sin() * weights[:, 0]).sum()).backward()

        values = values_of(entry_keys(relation), 5).requires_grad_()
        rows = own_of(full[0], shard.users), own_of(full[1], shard.items)
        ours = propagate_entries(hetero, relation, values, rows)
        sums = row_sums(hetero, relation, values)
        owners = shard.users, shard.items
        loss = 0.0
        for part, total, side, owner in zip(
            ours, sums, zip(*(t.split([NUM_USERS, NUM_ITEMS]) for t in (expected, weights)), strict=True), owners,
            strict=True,
        ):  # fmt: skip
            place = slice(*owner.own)
            torch.testing.assert_close(part, side[0][place].detach(), msg=partial("{}, {}: {}".format, name, kernel))
            loss = loss + (part.sin() * side[1][place]).sum() + (total[:, 0].sin() * side[1][place, 0]).sum()
        loss.backward()
        for row, table, owner in zip(rows, full, owners, strict=True):
            torch.testing.assert_close(row.grad, table.grad[slice(*owner.own)])
        of_values = dense_of(whole, full_values.grad)
        keys = entry_keys(relation)
        torch.testing.assert_close(values.grad, of_values[keys // NUM_NODES, keys % NUM_NODES])


def check_sums_of_ends(world):
    for shard, graph in product(shards(world), GRAPHS.values()):
        relation = Relation.normalized(own_rows(graph(), shard), shard)
        full = [random_rows(NUM_NODES, 1, seed)[:, 0].requires_grad_() for seed in (1, 2)]
        keys = entry_keys(relation)
        users, items = slice(*shard.users.own), slice(*shard.items.own)
        mine = [[side.detach()[:NUM_USERS][users].requires_grad_(), side.detach()[NUM_USERS:][items].requires_grad_()]
                for side in full]  # fmt: skip
        ours = sums_of_ends(relation, *mine)
        torch.testing.assert_close(ours, (full[0][keys // NUM_NODES] + full[1][keys % NUM_NODES]).detach())
        (ours * values_of(keys, 4)).sum().backward()
        every = entry_keys(Relation.normalized(graph()))
        ((full[0][every // NUM_NODES] + full[1][every % NUM_NODES]) * values_of(every, 4)).sum().backward()
        for side, table in zip(mine, full, strict=True):
            torch.testing.assert_close(side[0].grad, table.grad[:NUM_USERS][users])
            torch.testing.assert_close(side[1].grad, table.grad[NUM_USERS:][items])


def check_contrast(world):
    """Values and gradients, blocks of several sizes; with gradient for both views, or for the anchors alone."""
    whole = batch_contrastive.BLOCK_ELEMENTS, batch_contrastive.LEAST_ANCHORS
    users = torch.tensor([1, 7, 7, 11, 4, 1])
    pos, neg = torch.tensor([0, 8, 3, 3, 3, 0]), torch.tensor([5, 5, 1, 0, 8, 2])
    for shard, block, both in product(shards(world), ((1, 1), (12, 2), whole), (True, False)):
        batch_contrastive.BLOCK_ELEMENTS, batch_contrastive.LEAST_ANCHORS = block
        full = [random_rows(NUM_NODES, WIDTH, seed).requires_grad_() for seed in (1, 2)]
        targets = full[1] if both else full[1].detach()
        expected = equations.batch_info_nce(full[0], targets, torch.cat([users, pos + NUM_USERS]), temperature=0.2)
        (3 * expected).backward()
        own = shard.users.own
        mine = (users >= own.start) & (users < own.stop)
        batch = RankingBatch.of(shard, users[mine] - own.start, pos[mine], neg[mine], size=6)
        (sides,) = batch.nodes
        nodes = torch.cat([sides[0].nodes + own.start, sides[1].nodes + shard.items.own.start + NUM_USERS])
        rows = [table.detach()[nodes].requires_grad_() for table in full]
        repeats = Repeats.of(sides, batch_size=6, world=world)
        loss = batch_info_nce(rows[0], rows[1] if both else rows[1].detach(), repeats, temperature=0.2)
        (3 * loss).backward()
        torch.testing.assert_close(all_reduce_sum(loss.detach(), world), expected.detach())
        for part, table in list(zip(rows, full, strict=True))[: 1 + both]:
            torch.testing.assert_close(part.grad, table.grad[nodes], rtol=1e-4, atol=1e-6)
    batch_contrastive.BLOCK_ELEMENTS, batch_contrastive.LEAST_ANCHORS = whole


def check_draws(world):
    """Random numbers of nodes and entries are the same whoever asks, also where rows are not ids."""
    generator = torch.Generator().manual_seed(3)
    ids = [torch.randperm(count, generator=generator) for count in (NUM_USERS, NUM_ITEMS)]
    graph = GRAPHS["cold nodes"]()
    for numbering in (None, ids):
        whole = Relation.normalized(graph)
        dense = Draws.of(whole.shard, entry_keys(whole), RandomStream.of(1), width=WIDTH, num_layers=2)
        shard = shard_with(world, cuts(NUM_USERS, world.size), cuts(NUM_ITEMS, world.size), *(numbering or ()))
        pairs = graph.select(shard.user_ids)
        relation = Relation.normalized(pairs, shard)
        ours = Draws.of(shard, entry_keys(relation), RandomStream.of(1), width=WIDTH, num_layers=2)
        nodes = torch.cat([shard.user_ids, shard.own_item_ids + NUM_USERS])
        torch.testing.assert_close(ours.view_noise, dense.view_noise[nodes])
        torch.testing.assert_close(ours.loss_noise, dense.loss_noise[nodes])
        keys, order = entry_keys(whole).sort()
        for mine, all_of_them in zip(ours.gate_noise, dense.gate_noise, strict=True):
            assert torch.equal(mine, all_of_them[order[torch.searchsorted(keys, entry_keys(relation))]])


def golden_shards(world, golden):
    num_users, num_items = golden.num_nodes
    last = world.size - 1 if world.size > 1 else None
    yield Shard.whole(num_users, num_items, world=world)
    yield shard_with(world, cuts(num_users, world.size, last), cuts(num_items, world.size, last))


def check_step(world):
    """Two batches, in float64: losses, gradients of the generators, and all parameters, for both kernels."""
    for path, kernel in product(FILES, ("csr", "dgl")):
        golden = Golden(path, torch.float64)
        for shard in golden_shards(world, golden):
            phase, model = build(golden, shard, kernel)
            for step in range(2):
                relation = model.graph.relations[REAL]
                batch, draws = batch_of(golden, step, shard), draws_of(golden, step, relation)
                values = phase.update(batch, draws, gate_temperature=golden["gate_beta"])
                check_losses(golden, step, {k: all_reduce_sum(v, world) for k, v in values.items()})
                check_parameters(golden, step, model, shard)


def check_losses(golden, step, values):
    names = {
        "contrast_loss": "contrast", "bottleneck_loss": "bottleneck", "recommend_loss_bpr": "bpr",
        "recommend_loss_reg": "l2", "vgae_loss_bce": "pruning_bce", "vgae_loss_kl": "pruning_kl",
        "vgae_loss_bpr": "pruning_bpr", "vgae_loss_reg": "pruning_l2", "denoise_loss_bpr": "gates_bpr",
        "denoise_loss_l0": "gates_l0", "denoise_loss_reg": "gates_l2",
    }  # fmt: skip
    for name, ours in names.items():
        golden.check(f"step{step}_{name}", values[ours])
    kept = golden[f"step{step}_generate_kept"].double().mean()
    torch.testing.assert_close(values["kept_share"].double(), kept)


def check_parameters(golden, step, model, shard):
    for name, parameter in named_parameters(model).items():
        update = {"vgae": "vgae", "gate": "denoise"}.get(name.split("_")[0], "recommend")
        for what, value in (("grad", parameter.grad), ("after", parameter)):
            key = f"step{step}_{update}_{what}_{name}"
            expected = own_part(golden[key], name, shard)
            message = partial("{}: {}".format, key)
            torch.testing.assert_close(value.detach(), expected, rtol=1e-9, atol=1e-11, msg=message)


@pytest.mark.parametrize("size", SIZES)
def test_sharded_operations_equal_their_twins(size):
    dgl_or_skip()
    on_workers(size, check_own_values, check_products, check_sums_of_ends, check_contrast, check_draws)


@pytest.mark.parametrize("size", SIZES)
def test_the_whole_step_equals_the_golden_numbers(size):
    dgl_or_skip()
    on_workers(size, check_step)
