"""AdaGCL where the golden files do not reach: views without entries, closed gates, modes, weights of 0, settings."""

import math

import pytest
import torch

from diffmm_dist.errors import UserError
from diffmm_dist.graph.entries import entry_values, num_entries
from diffmm_dist.graph.hetero import REAL, HeteroGraph
from diffmm_dist.graph.relation import Relation
from diffmm_dist.models.adagcl.gates import HardConcrete
from diffmm_dist.models.adagcl.model import AdaGCL
from diffmm_dist.models.adagcl.phases import AdaptivePhase, Draws, ViewSettings, joined_loss
from diffmm_dist.models.adagcl.pruning import kl_of_standard_normal
from diffmm_dist.models.base import Optimization, PhaseContext
from diffmm_dist.parallel.world import World
from diffmm_dist.runs.config import load_config
from tests.support.builders import random_pairs, training_data

DISTRIBUTION = HardConcrete(-0.45, 1.05)
PAIRS = random_pairs(12, 9, share=0.3, empty_rows=[11], empty_columns=[8])
OPTIMIZATION = Optimization(batch_size=16, learning_rate=1e-2, l2_weight=1e-4)


def build(mode="corrected", num_layers=2):
    data = training_data(PAIRS, {})
    graph = HeteroGraph({REAL: Relation.normalized(PAIRS)})
    return AdaGCL(
        data.shard, graph, seed=1, embedding_dim=4, num_layers=num_layers, gates=DISTRIBUTION, mode=mode
    ), data


def settings(**changes):
    return ViewSettings(**{
        "contrastive_weight": 0.1, "bottleneck_weight": 0.01, "temperature": 0.5, "kl_weight": 0.1, "l0_weight": 1e-4,
        "initial_temperature": 2.0, "temperature_decay": 0.98, "lowest_temperature": 0.05, "adam_eps": 1e-3, **changes,
    })  # fmt: skip


def train(model, data, epochs=1, **changes):
    phase = AdaptivePhase(model, data, OPTIMIZATION, settings(**changes))
    values = []
    for epoch in range(epochs):
        for index in range(phase.begin(PhaseContext(World.single(), 3, epoch))):
            values.append(phase.step(index))
    return values


def with_decoder(model, bias):
    """Let the decoder answer with one logit for every pair."""
    with torch.no_grad():
        model.pruning.decoder.output.weight.zero_()
        model.pruning.decoder.output.bias.fill_(bias)
    return torch.randn(12, 4), torch.randn(9, 4)


def test_a_view_without_entries_is_empty():
    model, _ = build()
    values, share = model.pruning.prune(model.graph, with_decoder(model, -1.0))
    assert share == 0
    assert torch.equal(values, torch.zeros_like(values))
    for rows, table in zip(model.pruned_view(values), model.tables, strict=True):
        assert torch.equal(rows, table)


def test_a_view_of_all_entries_is_the_graph():
    model, _ = build()
    values, share = model.pruning.prune(model.graph, with_decoder(model, 0.0))  # q is 1/2 and stays
    assert share == 1
    assert torch.equal(values, entry_values(model.graph.relations[REAL]))
    for rows, expected in zip(model.pruned_view(values), model(), strict=True):
        torch.testing.assert_close(rows, expected)


def closed(model):
    with torch.no_grad():
        for layer in model.gating.layers:
            layer.attention.weight.zero_()
            layer.attention.bias.fill_(-50.0)
    return model


def test_gates_that_are_all_closed_give_numbers():
    model = closed(build()[0])
    entries = num_entries(model.graph.relations[REAL])
    noise = [torch.full((entries,), 0.5, dtype=torch.float64)] * 2
    gated = model.gating.train_pass(model.graph, model.gate_input(), noise, 2.0)
    (gated.rows[0].sum() + gated.rows[1].sum()).backward()
    assert all(torch.equal(gates, torch.zeros(entries)) for gates in gated.gates)
    assert all(bool(torch.isfinite(p.grad).all()) for p in model.gating.parameters())
    for rows, table in zip(model.gated_view(), model.tables, strict=True):
        torch.testing.assert_close(rows, table)


def test_gradients_stay_where_they_belong():
    model, _ = build()
    entries = num_entries(model.graph.relations[REAL])
    sum(rows.sin().sum() for rows in model.gated_view()).backward()
    assert model.user_embedding.grad.abs().sum() > 0
    assert all(p.grad is None for p in model.gating.parameters())
    model.zero_grad()
    noise = [torch.rand(entries, dtype=torch.float64) for _ in range(2)]
    sum(
        rows.sin().sum() for rows in model.gating.train_pass(model.graph, model.gate_input(), noise, 2.0).rows
    ).backward()
    assert model.user_embedding.grad is None
    assert all(p.grad is not None for p in model.gating.parameters())


def test_reference_trains_the_gates_on_the_first_tables():
    model, data = build("reference")
    first = [table.detach().clone() for table in model.tables]
    train(model, data)
    for stored, table, before in zip(model.gate_input(), model.tables, first, strict=True):
        assert torch.equal(stored, before)
        assert not torch.equal(table, before)
    assert set(dict(model.named_buffers())) == {"initial_users", "initial_items"}
    corrected, data = build()
    train(corrected, data)
    assert not dict(corrected.named_buffers())
    assert torch.equal(corrected.gate_input()[0], corrected.user_embedding)


@pytest.mark.parametrize(("weights", "terms", "steps"), [
    ({}, {"contrast", "bottleneck"}, 3),
    ({"contrastive_weight": 0.0}, {"bottleneck"}, 2),
    ({"bottleneck_weight": 0.0}, {"contrast"}, 2),
    ({"contrastive_weight": 0.0, "bottleneck_weight": 0.0}, set(), 1),
])  # fmt: skip
def test_a_weight_of_0_leaves_out_its_step(weights, terms, steps):
    model, data = build()
    phase = AdaptivePhase(model, data, OPTIMIZATION, settings(**weights))
    phase.begin(PhaseContext(World.single(), 3, 0))
    values = phase.step(0)
    assert set(values) & {"contrast", "bottleneck"} == terms
    state = phase.optimizers["tables"].state[model.user_embedding]
    assert int(state["step"]) == steps


@pytest.mark.parametrize("num_layers", [1, 3])
def test_other_depths_train(num_layers):
    model, data = build(num_layers=num_layers)
    values = train(model, data, epochs=8)
    assert len(model.gating.layers) == num_layers
    assert values[-1]["bpr"] < values[0]["bpr"]


def test_gates_are_those_of_the_paper():
    log_a, noise = torch.tensor([-2.0, 0.0, 3.0]), torch.tensor([0.9, 0.5, 0.1], dtype=torch.float64)
    gates = DISTRIBUTION.sample(log_a, noise, 0.7)
    for value, a, r in zip(gates.tolist(), log_a.tolist(), noise.tolist(), strict=True):
        s = 1 / (1 + math.exp(-(math.log(r / (1 - r)) + a) / 0.7))
        assert value == pytest.approx(min(1, max(0, s * 1.5 - 0.45)), abs=1e-6)
    assert DISTRIBUTION.middle(torch.tensor([0.0])).item() == pytest.approx(0.3)
    open_prob = DISTRIBUTION.open_prob(torch.tensor([0.0]), 0.7).item()
    assert open_prob == pytest.approx(1 / (1 + math.exp(0.7 * math.log(0.45 / 1.05))))
    drawn = DISTRIBUTION.sample(torch.zeros(100_000), torch.rand(100_000, dtype=torch.float64), 0.7)
    assert float((drawn > 0).double().mean()) == pytest.approx(open_prob, abs=0.01)


def test_the_temperature_falls_to_its_floor():
    temperatures = [settings().gate_temperature(epoch) for epoch in (0, 1, 182, 183, 500)]
    assert temperatures == pytest.approx([2.0, 1.96, 2 * 0.98**182, 0.05, 0.05])
    assert temperatures[2] > 0.05


def test_draws_stay_where_their_logits_are_finite():
    keys = torch.arange(200_000)
    shard = build()[0].shard
    from diffmm_dist.parallel.random import RandomStream

    draws = Draws.of(shard, keys, RandomStream.of(1), width=4, num_layers=2)
    for noise in draws.gate_noise:
        assert noise.dtype == torch.float64
        assert 1e-7 <= noise.min() < 1e-4
        assert 1 - 1e-4 < noise.max() <= 1 - 1e-7
    assert not torch.equal(*draws.gate_noise)
    assert not torch.equal(draws.view_noise, draws.loss_noise)


def test_losses_of_extreme_logits_are_finite_when_corrected():
    far = torch.tensor([200.0, -200.0])
    assert joined_loss(far, far, released=False).item() == pytest.approx(400)
    assert joined_loss(far, far, released=True).item() == pytest.approx(200, abs=1)  # floored at -100, as released
    near = torch.tensor([0.3, -1.2])
    torch.testing.assert_close(joined_loss(near, near, released=False), joined_loss(near, near, released=True))
    mean, std = torch.zeros(2, 3), torch.zeros(2, 3)
    assert torch.isfinite(kl_of_standard_normal(mean, std, smallest_std=1e-12))
    assert kl_of_standard_normal(mean, torch.ones(2, 3), smallest_std=1e-12) == 0


def test_reference_has_two_layers():
    with pytest.raises(UserError, match="model.mode=reference has two layers, not model.num_layers=3; set it to 2"):
        load_config(
            None, ["data.path=d", "run.path=r", "model.name=adagcl", "model.mode=reference", "model.num_layers=3"]
        )
