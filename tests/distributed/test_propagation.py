"""Sharded propagation, contrast and ranking equal their dense twins, values and gradients."""

from functools import partial
from itertools import chain, product

import pytest
import torch

from diffmm_dist.graph.hetero import REAL, HeteroGraph
from diffmm_dist.graph.layout import ColumnLayout, Reads, RowLayout
from diffmm_dist.graph.propagate import propagate, propagate_tables, propagate_to, propagate_to_users
from diffmm_dist.graph.relation import Relation
from diffmm_dist.graph.targets import Targets
from diffmm_dist.losses import contrastive, equations
from diffmm_dist.losses.contrastive import BatchNodes, info_nce
from diffmm_dist.models.common.ranking_batch import DrawnBatch, PlannedBatches, RankingBatch
from diffmm_dist.parallel.collectives import all_reduce_sum, gather_owned
from diffmm_dist.parallel.halo import localize
from diffmm_dist.parallel.random import RandomStream
from diffmm_dist.sparse import CSR
from tests.support.builders import as_matrix, own_rows, random_pairs, random_rows
from tests.support.optional import dgl_or_skip
from tests.support.workers import SIZES, cuts, exchanges_of, on_workers, shard_with

NUM_USERS, NUM_ITEMS, WIDTH = 13, 9, 5


def hub():
    """Everybody has item 4, user 2 has everything, and the rest is empty."""
    users = torch.cat([torch.arange(NUM_USERS), torch.full((NUM_ITEMS,), 2)])
    items = torch.cat([torch.full((NUM_USERS,), 4), torch.arange(NUM_ITEMS)])
    return CSR.from_pairs(users, items, num_rows=NUM_USERS, num_columns=NUM_ITEMS)


GRAPHS = {
    "cold nodes": lambda: random_pairs(NUM_USERS, NUM_ITEMS, share=0.3, empty_rows=[0, 12], empty_columns=[8]),
    "no edges": lambda: random_pairs(NUM_USERS, NUM_ITEMS, share=0.0),
    "a hub": hub,
}


def shards(world):
    """Even shards, one worker with nothing, and one with users but no items."""
    size = world.size
    last = size - 1 if size > 1 else None
    yield shard_with(world, cuts(NUM_USERS, size), cuts(NUM_ITEMS, size))
    yield shard_with(world, cuts(NUM_USERS, size, last), cuts(NUM_ITEMS, size, last))
    yield shard_with(world, cuts(NUM_USERS, size), cuts(NUM_ITEMS, size, 0 if size > 1 else None))


def own_of(table, ownership):
    return table[slice(*ownership.own)].detach().clone().requires_grad_()


def check_propagation(world):
    cases = product(shards(world), GRAPHS.items(), (1.0, 0.6))
    for shard, (name, graph), keep_prob in cases:
        stream = RandomStream.of(7)
        matrix = as_matrix(Relation.normalized(graph()).dropped(keep_prob, stream))
        relation = Relation.normalized(own_rows(graph(), shard), shard).dropped(keep_prob, stream)
        other = Relation.normalized(own_rows(hub(), shard), shard)  # with another halo
        for kernel in ("csr", "dgl"):
            hetero = HeteroGraph({REAL: relation, "generated": other}, kernel=kernel)
            compare_with_matrix(hetero, shard, matrix, f"{name}, keep {keep_prob}, {kernel}")


def compare_with_matrix(graph, shard, matrix, name):
    """One product, products of two item tables at once, and the users' half of one."""
    owners = shard.users, shard.items, shard.items
    full = [random_rows(owner.total, WIDTH, seed).requires_grad_() for seed, owner in enumerate(owners)]
    mine = [own_of(table, owner) for table, owner in zip(full, owners, strict=True)]
    both = [(matrix @ torch.cat([full[0], items])).split([NUM_USERS, NUM_ITEMS]) for items in full[1:]]
    expected = [*both[0], *both[0], *both[1], both[1][0]]
    of_both = [part for rows in propagate_tables(graph, REAL, mine[0], mine[1:]) for part in rows]
    half = propagate_to_users(graph, REAL, mine[0], mine[2])
    ours = [*propagate(graph, REAL, *mine[:2]), *of_both, half]
    losses = []
    for seed, (part, plain) in enumerate(zip(ours, expected, strict=True), 3):
        owner = shard.users if len(plain) == NUM_USERS else shard.items
        torch.testing.assert_close(part, own_of(plain, owner).detach(), msg=lambda text: f"{name}: {text}")
        weights = random_rows(owner.total, WIDTH, seed)
        losses.append(((plain.sin() * weights).sum(), (part.sin() * own_of(weights, owner).detach()).sum()))
    for loss in zip(*losses, strict=True):
        sum(loss).backward()
    for table, row, owner in zip(full, mine, owners, strict=True):
        torch.testing.assert_close(row.grad, own_of(table.grad, owner).detach(), msg=lambda text: f"{name}: {text}")


def check_layouts(world):
    """Tables into a layout and back: whole, a few rows, and a chain of products in between; gradients too."""
    for shard, (name, graph) in product(shards(world), GRAPHS.items()):
        matrix = as_matrix(Relation.normalized(graph()))
        for layout in (ColumnLayout.of(shard, width=WIDTH), RowLayout(shard)):
            hetero = HeteroGraph({REAL: Relation.normalized(layout.pairs(own_rows(graph(), shard)), layout.shard)})
            for read in (None, (torch.tensor([0, 7, 12]), torch.tensor([2, 8]))):
                compare_layout(layout, shard, hetero, matrix, read, name)
            compare_local(layout, shard, hetero, matrix, name)


def compare_layout(layout, shard, graph, matrix, read, name):
    """Both sides of A^ A^ [users; items], of which some rows are read, and the tables as they entered."""
    owners = shard.users, shard.items
    full = [random_rows(owner.total, WIDTH, seed).requires_grad_() for seed, owner in enumerate(owners)]
    plain = (matrix @ (matrix @ torch.cat(full))).split([NUM_USERS, NUM_ITEMS])
    mine = [own_of(table, owner) for table, owner in zip(full, owners, strict=True)]
    (users,), (items,) = layout.enter(mine[:1], mine[1:])
    assert users.shape[1] == layout.width(WIDTH)
    once = propagate(graph, REAL, users, items)
    kept = layout.take(*mine)
    assert torch.equal(kept[0], users)
    assert torch.equal(kept[1], items)
    assert all(map(torch.equal, layout.give_back(*kept), mine))
    whole = reading = layout.whole
    if read is not None:
        nothing, _ = localize(torch.zeros(0, dtype=torch.int64), shard.items, shard.world, purpose="test")
        reading = layout.readings([Reads(*map(local_rows, read, owners), nothing)])[0].own
    twice = (
        propagate(graph, REAL, *once)
        if read is None
        else propagate_to(Targets.of(graph.relations[REAL], reading.rows), *once)
    )
    left, entered = layout.leave([twice, (users, items)], [reading, whole])
    left = reading.place(left)
    losses = [0.0, 0.0]
    for side, owner in enumerate(owners):
        torch.testing.assert_close(entered[side], mine[side], msg=lambda text: f"{name}: {text}")
        wanted = torch.arange(owner.total) if read is None else read[side]
        rows = local_rows(wanted, owner)
        expected = plain[side][rows + owner.own.start]
        torch.testing.assert_close(left[side][rows], expected, msg=lambda text: f"{name}: {text}")
        losses[0] += plain[side][wanted].sin().sum()
        losses[1] += left[side][rows].sin().sum()
    for loss in losses:
        loss.backward()
    for table, whole, owner in zip(mine, full, owners, strict=True):
        torch.testing.assert_close(table.grad, whole.grad[slice(*owner.own)], msg=lambda text: f"{name}: {text}")


def compare_local(layout, shard, graph, matrix, name):
    """A^ [users; items] at rows that each worker reads for itself, other workers' items among them, in two steps."""
    world, owners = shard.world, (shard.users, shard.items)
    full = [random_rows(owner.total, WIDTH, seed).requires_grad_() for seed, owner in enumerate(owners)]
    plain_users, plain_items = (matrix @ torch.cat(full)).split([NUM_USERS, NUM_ITEMS])
    mine = [own_of(table, owner) for table, owner in zip(full, owners, strict=True)]
    reads = []
    for step in range(2):
        wanted = [torch.tensor([0, 4 + step, 8]) for _ in range(world.size)]  # the same items of all workers
        wanted[0] = wanted[0][: 1 + step]
        halo, _ = localize(wanted[world.rank], shard.items, world, purpose="test")
        own = local_rows(torch.unique(torch.cat(wanted)), shard.items)
        reads.append(Reads(local_rows(torch.tensor([step, 9]), shard.users), own, halo))
    steps, num_exchanges = exchanges_of(lambda: layout.readings(reads))
    assert num_exchanges == (2 if world.size > 1 and isinstance(layout, ColumnLayout) else 0)
    losses = [0.0, 0.0]
    for of_step, read in zip(steps, reads, strict=True):
        (users,), (items,) = layout.enter(mine[:1], mine[1:])
        found = propagate_to(Targets.of(graph.relations[REAL], of_step.local.rows), users, items)
        (left,) = layout.leave([found], [of_step.local])
        users, items = of_step.local.place(left)
        at = torch.cat([read.items, torch.arange(read.halo.num_inner, read.halo.num_local)])
        ids = torch.cat([read.items + shard.items.own.start, read.halo.global_ids])
        for table, rows, expected in (
            (users, read.users, plain_users[read.users + shard.users.own.start]),
            (items, at, plain_items[ids]),
        ):
            torch.testing.assert_close(table[rows], expected, msg=lambda text: f"{name}: {text}")
            losses[0] += expected.sin().sum()
            losses[1] += table[rows].sin().sum()
    losses[0].backward()
    losses[1].backward()
    for table, whole, owner in zip(mine, full, owners, strict=True):
        gradient = all_reduce_sum(whole.grad, world)[slice(*owner.own)]
        torch.testing.assert_close(table.grad, gradient, msg=lambda text: f"{name}: {text}")


def local_rows(rows, owner):
    """Those of some rows that a worker owns, by its own numbers."""
    return rows[(rows >= owner.own.start) & (rows < owner.own.stop)] - owner.own.start


def check_contrast(world):
    """Values and gradients, blocks of several sizes, all nodes or the batch's in the denominator."""
    whole = contrastive.BLOCK_ELEMENTS, contrastive.LEAST_ANCHORS
    for shard, in_batch, block in product(shards(world), (False, True), ((1, 1), (12, 1), (4, 3), whole)):
        contrastive.BLOCK_ELEMENTS, contrastive.LEAST_ANCHORS = block
        compare_contrast(world, shard, in_batch)
    contrastive.BLOCK_ELEMENTS, contrastive.LEAST_ANCHORS = whole


def compare_contrast(world, shard, in_batch):
    anchors, targets = random_rows(NUM_ITEMS, WIDTH, 1), random_rows(NUM_ITEMS, WIDTH, 2)
    nodes = torch.tensor([3, 0, 3, 8, 3, 5])
    distinct, places = torch.unique(nodes, return_inverse=True)
    full = [table.clone().requires_grad_() for table in (anchors, targets)]
    x, y, chosen = (full[0][distinct], full[1][distinct], places) if in_batch else (*full, nodes)
    expected = equations.info_nce(x, y, chosen, temperature=0.2)
    (3 * expected).backward()
    mine = [own_of(table, shard.items) for table in (anchors, targets)]
    batch = items_of_batch(shard, world, nodes.tolist())
    loss = info_nce(mine[0], mine[1:], batch, temperature=0.2, world=world, in_batch=in_batch)
    (3 * loss).backward()
    torch.testing.assert_close(all_reduce_sum(loss.detach(), world), expected.detach())
    for part, table in zip(mine, full, strict=True):
        torch.testing.assert_close(part.grad, table.grad[slice(*shard.items.own)], rtol=1e-4, atol=1e-6)


def check_contrast_of_terms(world):
    """Terms of which one has more blocks, and one no anchor, equal the sum of each alone, in fewer exchanges."""
    whole = contrastive.BLOCK_ELEMENTS, contrastive.LEAST_ANCHORS
    contrastive.BLOCK_ELEMENTS, contrastive.LEAST_ANCHORS = 1, 2
    for shard, in_batch in product(shards(world), (False, True)):
        options = {"temperature": 0.2, "world": world, "in_batch": in_batch}
        results = []
        for together in (True, False):
            views = [own_of(random_rows(NUM_ITEMS, WIDTH, number), shard.items) for number in range(5)]
            terms = [
                contrastive.Term(views[0], views[1:3], items_of_batch(shard, world, [3, 0, 3, 8, 3, 5])),
                contrastive.Term(views[1], views[3:], items_of_batch(shard, world, [2, 2])),
                contrastive.Term(views[4], views[:1], items_of_batch(shard, world, [])),
            ]
            if together:
                loss, num_exchanges = exchanges_of(partial(contrastive.info_nce_of_terms, terms, **options))
            else:
                loss, of_each = exchanges_of(partial(one_after_the_other, terms, **options))
            loss.backward()
            results.append([loss.detach(), *(view.grad for view in views)])
        torch.testing.assert_close(*results)
        assert num_exchanges <= of_each
        if in_batch and world.size > 1:
            assert (num_exchanges, of_each) == (4, 8)  # anchors, two blocks, gradients
    contrastive.BLOCK_ELEMENTS, contrastive.LEAST_ANCHORS = whole


def items_of_batch(shard, world, items):
    counts = torch.bincount(torch.tensor(items, dtype=torch.int64), minlength=NUM_ITEMS)[slice(*shard.items.own)]
    return BatchNodes.counted(counts, shard.items, world, batch_size=max(len(items), 1))


def one_after_the_other(terms, **options):
    return sum(info_nce(term.anchor_ND, term.targets, term.batch, **options) for term in terms)


def check_ranking(world):
    """BPR over a batch whose items lie anywhere, and the batch's nodes at their owners."""
    users, items = random_rows(NUM_USERS, WIDTH, 1), random_rows(NUM_ITEMS, WIDTH, 2)
    batch_users = torch.tensor([1, 7, 7, 11, 4])
    pos, neg = torch.tensor([0, 8, 3, 3, 3]), torch.tensor([5, 5, 1, 0, 8])
    full = [table.clone().requires_grad_() for table in (users, items)]
    expected = equations.bpr(full[0][batch_users], full[1][pos], full[1][neg], divisor=8)
    expected.backward()
    for shard in shards(world):
        own = shard.users.own
        ours = (batch_users >= own.start) & (batch_users < own.stop)
        batch = RankingBatch.of(shard, batch_users[ours] - own.start, pos[ours], neg[ours], size=5)
        mine = own_of(users, shard.users), own_of(items, shard.items)
        loss = batch.bpr(mine, divisor=8)
        loss.backward()
        torch.testing.assert_close(all_reduce_sum(loss.detach(), world), expected.detach())
        for part, table, rows in zip(mine, full, (shard.users, shard.items), strict=True):
            torch.testing.assert_close(part.grad, table.grad[slice(*rows.own)])
        for nodes, ids, rows in zip(batch.nodes[0], (batch_users, pos), (shard.users, shard.items), strict=True):
            weights = torch.zeros(rows.own.size).index_put_((nodes.nodes,), nodes.weights)
            counts = torch.bincount(ids, minlength=rows.total) / 5
            torch.testing.assert_close(gather_owned(weights, rows, world, purpose="test"), counts)


def drawn_batches(shard):
    """Three batches, with and without further items, of which some workers have no user."""
    own = shard.users.own
    for number, users in enumerate(([1, 7, 7, 11, 4], [0], [3, 3, 12])):
        users, stream = torch.tensor(users), RandomStream(number)
        ours, places = (users >= own.start) & (users < own.stop), torch.arange(len(users))
        pos, neg, *further = (stream.child(name).integers(places, NUM_ITEMS)[ours] for name in "pnab")
        more = torch.stack(further, dim=1) if number == 2 else None
        yield DrawnBatch(users[ours] - own.start, pos, neg, len(users), stream, more)


def facts_of(batch):
    """All that is planned of a batch."""
    halo = batch.item_halo
    yield from (batch.user_rows, batch.pos_items, batch.neg_items, batch.further_items)
    yield from (halo.global_ids, halo.send_rows, torch.tensor(halo.receive_counts), torch.tensor(halo.send_counts))
    for max_nodes in (None, 2, 100):
        for side in chain(*batch.contrasted_nodes(max_nodes)):
            yield from (side.nodes, side.weights, torch.tensor([*side.worker_counts, side.most_rows]))


def check_planned_together(world):
    """Batches that are planned together are as those that are planned alone, and take the exchanges of one."""

    def plan(shard, drawn):
        planned = PlannedBatches(shard, drawn)
        return [list(facts_of(planned[place])) for place in range(len(planned))]

    for shard in shards(world):
        drawn = [[batch] for batch in drawn_batches(shard)]
        together, num_exchanges = exchanges_of(lambda shard=shard, drawn=drawn: plan(shard, drawn))
        for batch, planned in zip(drawn, together, strict=True):
            (alone,), of_one = exchanges_of(lambda shard=shard, batch=batch: plan(shard, [batch]))
            torch.testing.assert_close(planned, alone, rtol=0, atol=0)
            assert num_exchanges == (5 if world.size > 1 else 0)
            assert of_one <= num_exchanges


@pytest.mark.parametrize("size", SIZES)
def test_sharded_operations_equal_their_twins(size):
    dgl_or_skip()
    on_workers(
        size,
        check_propagation,
        check_layouts,
        check_contrast,
        check_contrast_of_terms,
        check_ranking,
        check_planned_together,
    )
