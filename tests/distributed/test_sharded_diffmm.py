"""DiffMM's whole step on shards equals the golden numbers and the dense step."""

from functools import partial
from itertools import product

import pytest
import torch

from diffmm_dist.graph.layout import ColumnLayout, RowLayout
from diffmm_dist.models.base import Optimization, PhaseContext
from diffmm_dist.models.diffmm.phases import diffmm_phases, recommend_losses
from diffmm_dist.parallel.collectives import all_reduce_sum
from diffmm_dist.parallel.replicas import sum_gradients
from diffmm_dist.parallel.shard import Shard
from diffmm_dist.parallel.world import World
from tests.support.golden import FILES, Golden, batch_of, build_model, contrast_of, golden_parameters
from tests.support.optional import dgl_or_skip
from tests.support.workers import SIZES, cuts, on_workers, shard_with


def shards(world, golden):
    num_users, num_items = golden["num_users"], golden["num_items"]
    last = world.size - 1 if world.size > 1 else None
    yield Shard.whole(num_users, num_items, world=world)
    yield shard_with(world, cuts(num_users, world.size, last), cuts(num_items, world.size, last))


def tables_and_replicas(model):
    tables = {"user_embedding": model.shard.users, "item_embedding": model.shard.items}
    return tables, [model.modality_logits, *model.projections.parameters()]


def check_recommend_step(world):
    """Losses, gradients and the parameters after Adam's step, for both kernels."""
    for golden in map(Golden, FILES):
        optimization = Optimization(len(golden["batch_user"]), 1e-3, golden["reg_weight"])
        dense = stepped(build_model(golden), golden, optimization, World.single())
        by_columns = partial(ColumnLayout.of, width=golden["embedding_dim"])
        for shard in shards(world, golden):
            for kernel, layout_of in product(("csr", "dgl"), (RowLayout, by_columns)):
                model = build_model(golden, kernel, shard, layout_of=layout_of)
                compare_step(golden, model, stepped(model, golden, optimization, world), dense)


def stepped(model, golden, optimization, world):
    """Take one step as the phase does, and return the model's losses."""
    tables, replicas = tables_and_replicas(model)
    optimizer = torch.optim.Adam([*(getattr(model, name) for name in tables), *replicas], lr=1e-3)
    losses = recommend_losses(model, batch_of(golden, model.shard), optimization, contrast_of(golden))
    sum(losses.values()).backward()
    sum_gradients(replicas, world, purpose="test")
    optimizer.step()
    return model, {name: all_reduce_sum(value.detach(), world) for name, value in losses.items()}


def compare_step(golden, model, ours, dense):
    names = {"loss_bpr": "bpr", "loss_reg": "l2"}
    for name, key in names.items():
        golden.check(name, ours[1][key])
    golden.check("loss_total", sum(ours[1].values()))
    own, _ = tables_and_replicas(model)
    dense_parameters = golden_parameters(golden, dense[0])
    for name, parameter in golden_parameters(golden, model).items():
        place = slice(*own[name].own) if name in own else ...
        expected = golden[f"grad_{name}"][place]
        gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-6)
        # Adam's first step is the sign of the gradient, so it is compared where rounding cannot turn that around.
        certain = expected.abs() > 1e-5
        torch.testing.assert_close(parameter[certain], dense_parameters[name][place][certain], rtol=1e-4, atol=2e-6)


DENOISERS = ({"products": "direct"}, {"products": "gram"}, {"noise": "hidden"}, {"normalize_input": True})


def item_shards(world):
    """Over how many workers a denoiser can be spread."""
    return [count for count in range(1, world.size + 1) if world.size % count == 0]


def check_denoise_step(world):
    """Losses and summed gradients of every denoiser after one batch, whole or spread over the items."""
    for golden, options in product(map(Golden, FILES), DENOISERS):
        options = options | {"input_dropout_prob": 0.5}
        expected = denoised(golden, build_model(golden, **options), World.single())
        for shard, count in product(shards(world, golden), item_shards(world)):
            model = build_model(golden, shard=shard, num_item_shards=count, **options)
            compare_denoised(denoised(golden, model, world), expected, model.row_owners())


def compare_denoised(ours, dense, owners):
    assert list(ours) == list(dense)
    for name, whole in dense.items():
        expected = whole[slice(*owners[name].own)] if name in owners else whole
        atol = 1e-5 * max(1.0, float(whole.abs().max()))
        torch.testing.assert_close(ours[name], expected, rtol=1e-4, atol=atol, msg=lambda m, n=name: f"{n}: {m}")


def denoised(golden, model, world):
    """The step's values, summed over the workers, and the gradients, by name."""
    optimization = Optimization(batch_size=7, learning_rate=0.0, l2_weight=0.0)
    phase, *_ = diffmm_phases(model, optimization, contrast_of(golden))
    assert phase.begin(PhaseContext(world, 3, 1)) == -(-model.shard.num_users // 7)
    values = {name: all_reduce_sum(value, world) for name, value in phase.step(0).items()}
    return values | {f"denoisers.{name}": parameter.grad for name, parameter in model.denoisers.named_parameters()}


def check_rebuild(world):
    """The same edges for every user, and the same shares on every worker."""
    for golden in map(Golden, FILES):
        expected, shares = rebuilt(golden, build_model(golden, rebuild_topk=3), World.single())
        for shard, count in product(shards(world, golden), item_shards(world)):
            model = build_model(golden, shard=shard, num_item_shards=count, rebuild_topk=3)
            items, values = rebuilt(golden, model, world)
            assert torch.equal(items, expected[slice(*shard.users.own)])
            assert values == pytest.approx(shares)


def rebuilt(golden, model, world):
    optimization = Optimization(batch_size=5, learning_rate=0.0, l2_weight=0.0)
    _, phase, _ = diffmm_phases(model, optimization, contrast_of(golden))
    for index in range(phase.begin(PhaseContext(world, 3, 1))):
        phase.step(index)
    return model.generated_items, phase.finish()


@pytest.mark.parametrize("size", SIZES)
def test_steps_equal_the_dense_ones(size):
    dgl_or_skip()
    on_workers(size, check_recommend_step, check_denoise_step, check_rebuild)
