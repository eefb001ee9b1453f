"""Tables whose rows travel as bfloat16: what is rounded is exactly what leaves a worker, and half the bytes do."""

from dataclasses import replace
from functools import partial

import pytest
import torch

from diffmm_dist.bench.comm import by_purpose, measure, predict
from diffmm_dist.data.training import TrainingData
from diffmm_dist.graph.hetero import REAL, HeteroGraph
from diffmm_dist.graph.layout import ColumnLayout
from diffmm_dist.graph.propagate import propagate
from diffmm_dist.graph.relation import Relation
from diffmm_dist.parallel.shard import Shard
from diffmm_dist.parallel.world import World
from diffmm_dist.training.build import load_training_data, open_dataset
from tests.support.builders import as_matrix, own_rows, random_pairs, random_rows, small_config, synthetic_dataset
from tests.support.workers import on_workers

NUM_USERS, NUM_ITEMS, WIDTH = 13, 9, 5
ROUNDING = 2.0**-8  # relative, of a number that becomes bfloat16


def pairs():
    return random_pairs(NUM_USERS, NUM_ITEMS, share=0.4, empty_rows=[0, 12], empty_columns=[8])


def exact_rows(seed):
    """Numbers whose sums over any neighbours are exact in float32, but which bfloat16 cannot hold."""
    return (random_rows(NUM_USERS + NUM_ITEMS, WIDTH, seed) * 1024).round() / 1024


def rounded_but(exact, rows):
    """Rows as bfloat16 has them, but for some that stay exact, bool (rows,)."""
    return torch.where(exact[:, None], rows, rows.bfloat16().float())


def twin_by_rows(matrix, rows, owner, shard):
    """M rows: users read items of others rounded, and items get rounded sums of others' users."""
    users, items = slice(NUM_USERS), slice(NUM_USERS, None)
    out = torch.zeros_like(rows)
    out[items] = matrix.diagonal()[items, None] * rows[items]
    for rank in range(shard.world.size):
        own = owner == rank
        own_users = own & (torch.arange(len(rows)) < NUM_USERS)
        read = torch.cat([rows[users], rounded_but(own[items], rows[items])])
        out[own_users] = matrix[own_users] @ read
        out[items] += rounded_but(own[items], matrix[items][:, own_users] @ rows[own_users])
    return out


def twin_by_columns(matrix, rows, owner, shard):
    """M rows: columns of others' rows come rounded, and their rows of the result leave rounded."""
    out = []
    for rank, part in enumerate(rows.split(ColumnLayout.of(shard, width=WIDTH).columns.sizes, dim=1)):
        own = owner == rank
        out.append(rounded_but(own, matrix @ rounded_but(own, part)))
    return torch.cat(out, dim=1)


def sharded_by_rows(normalizer, users, items, shard):
    graph = HeteroGraph({REAL: Relation.normalized(own_rows(pairs(), shard), shard, normalizer=normalizer)})
    return propagate(graph, REAL, users, items)


def sharded_by_columns(normalizer, users, items, shard):
    layout = ColumnLayout.of(shard, width=WIDTH)
    edges = layout.pairs(own_rows(pairs(), shard))
    graph = HeteroGraph({REAL: Relation.normalized(edges, layout.shard, normalizer=normalizer)})
    entered = layout.enter([users], [items])
    (left,) = layout.leave([propagate(graph, REAL, entered[0][0], entered[1][0])], [layout.whole])
    return left


def own_parts(rows, shard):
    users, items = rows.split([NUM_USERS, NUM_ITEMS])
    return users[slice(*shard.users.own)], items[slice(*shard.items.own)]


def product_of(sharded, normalizer, shard, rows, pull):
    """Own rows of a product, and the gradient of its rows' products with ``pull``."""
    tables = [part.clone().requires_grad_() for part in own_parts(rows, shard)]
    found = sharded(normalizer, *tables, shard)
    sum((part * weights).sum() for part, weights in zip(found, own_parts(pull, shard), strict=True)).backward()
    return torch.cat([part.detach() for part in found]), torch.cat([table.grad for table in tables])


LAYOUTS = {"rows": (sharded_by_rows, twin_by_rows, 1), "columns": (sharded_by_columns, twin_by_columns, 2)}


def check_products(world):
    """Values and gradients: those of a twin that rounds what leaves a worker, and near those of the plain product."""
    shard = replace(Shard.whole(NUM_USERS, NUM_ITEMS, world=world), messages=torch.bfloat16)
    owner = torch.cat([ownership.owner_of(torch.arange(ownership.total)) for ownership in (shard.users, shard.items)])
    rows, pull = exact_rows(0), exact_rows(1)
    for name, (sharded, twin, roundings) in LAYOUTS.items():
        matrix = as_matrix(Relation.normalized(pairs(), normalizer="none"))
        found = product_of(sharded, "none", shard, rows, pull)
        expected = twin(matrix, rows, owner, shard), twin(matrix.T, pull, owner, shard)
        for mine, whole in zip(found, expected, strict=True):
            assert torch.equal(mine, torch.cat(own_parts(whole, shard))), name
        matrix = as_matrix(Relation.normalized(pairs()))
        found = product_of(sharded, "symmetric", shard, rows, pull)
        as_they_are = product_of(sharded, "symmetric", replace(shard, messages=None), rows, pull)
        for mine, plain, given in zip(found, as_they_are, (rows, pull), strict=True):
            assert torch.equal(mine, plain) == (world.size == 1), name
            torch.testing.assert_close(plain, torch.cat(own_parts(matrix @ given, shard)))
            bound = torch.cat(own_parts(matrix.abs() @ given.abs(), shard)) * ROUNDING * roundings * 1.01
            assert ((mine - plain).abs() <= bound).all(), name


MODELS = {
    "diffmm": {"model": {"contrast": {"contrastive_anchor": "main"}}},
    "diffmm by columns": {"graph": {"layout": "columns"}},
    "lightgcn": {"model": {"name": "lightgcn", "num_layers": 2}},
    "lightgcn by columns": {"model": {"name": "lightgcn"}, "graph": {"layout": "columns"}},
    "adagcl": {"model": {"name": "adagcl"}},
    "diffkg": {"model": {"name": "diffkg", "knowledge": {"num_hops": 2, "max_facts": 3}}},
    "promptmm": {"model": {"name": "promptmm"}},
    "promptmm, as released": {"model": {"name": "promptmm", "mode": "release"}},
}


def check_traffic(world, *, config, predicted):
    assert measure(config, predicted[0]).sent == by_purpose(predicted[world.rank])


@pytest.fixture(scope="module")
def configs(tmp_path_factory):
    """Of each model, a run whose messages are rounded."""
    folder = tmp_path_factory.mktemp("data")
    dataset = synthetic_dataset(folder / "d", users=60, items=30, interactions=600, knowledge=True)
    given = {name: sections | {"graph": {"kernel": "csr", "messages": "bfloat16"} | sections.get("graph", {})}
             for name, sections in MODELS.items()}  # fmt: skip
    return {name: small_config(dataset, folder / "run", **sections) for name, sections in given.items()}


def predicted_of(config, size) -> list:
    dataset = open_dataset(config)
    data: TrainingData = load_training_data(config, dataset, World.single())
    return list(predict(config, dataset, data, size))


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_what_leaves_a_worker_is_rounded_and_counted(size, configs):
    measured = configs.values() if size > 1 else ()  # one worker sends nothing
    traffic = [partial(check_traffic, config=config, predicted=predicted_of(config, size)) for config in measured]
    on_workers(size, check_products, *traffic)


@pytest.mark.parametrize("name", MODELS)
def test_tables_take_half_the_bytes(name, configs):
    config = configs[name]
    whole = config.model_copy(update={"graph": config.graph.model_copy(update={"messages": "float32"})})
    for rounded, plain in zip(predicted_of(config, 3), predicted_of(whole, 3), strict=True):
        for phase, purposes in rounded.items():
            for purpose, sent in purposes.items():
                tables = purpose in ("propagation", "layout")
                assert sent / plain[phase][purpose] == pytest.approx(0.5 if tables else 1, abs=0.1 * tables), purpose
