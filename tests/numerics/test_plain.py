"""The plain twin against the golden files, and the code that trains against the plain twin."""

import pytest
import torch

from diffmm_dist.bench import plain
from diffmm_dist.diffusion.denoiser import Denoiser
from diffmm_dist.diffusion.gaussian import ReverseChain, training_losses
from diffmm_dist.diffusion.noise import NoisyRows
from diffmm_dist.diffusion.schedule import DiffusionSchedule
from diffmm_dist.evaluation.evaluator import evaluate
from diffmm_dist.evaluation.topk import merge_topk
from diffmm_dist.graph.equations import normalized_adjacency
from diffmm_dist.models.base import Optimization
from diffmm_dist.models.common.ranking_batch import RankingBatch
from diffmm_dist.models.diffmm.phases import ContrastSettings, recommend_losses
from diffmm_dist.parallel.columns import Columns
from diffmm_dist.parallel.random import RandomStream
from diffmm_dist.parallel.world import World
from diffmm_dist.sparse import CSR
from tests.support import plain_diffmm
from tests.support.builders import GivenRows, random_pairs, random_rows, schedule, whole
from tests.support.golden import FILES, Golden, build_model, golden_parameters

ROWS = random_pairs(23, 17, share=0.2, empty_rows=[4], empty_columns=[6])
CLEAN = ROWS.dense()


@pytest.fixture(params=FILES, ids=lambda path: path.stem)
def golden(request):
    return Golden(request.param)


def graph_of(golden, edges):
    return plain_diffmm.adjacency(*golden[edges].T, golden["num_users"], golden["num_items"])


def graphs_of(golden):
    return graph_of(golden, "edges"), [graph_of(golden, name) for name in golden.modal_edges]


def items_by_user(pattern):
    return [items.tolist() for items in pattern.indices.split(pattern.row_counts.tolist())]


def plain_model(golden):
    model = plain_diffmm.PlainDiffMM(
        golden["num_users"], {name: golden[f"feat_{name}"] for name in golden.modalities},
        ("matrix", "affine")[golden["projection"]], golden["embedding_dim"], num_layers=golden["num_layers"],
        residual_weight=golden["modal_residual_weight"], modal_graph_weight=golden["modal_graph_weight"],
    )  # fmt: skip
    with torch.no_grad():
        for name, parameter in golden_parameters(golden, model).items():
            parameter.copy_(golden[f"param_{name}"])
    return model


def golden_batch(golden):
    return golden["batch_user"], golden["batch_pos"], golden["batch_neg"]


def recommend_settings(golden, anchor):
    return {
        "batch_size": 16, "l2_weight": golden["reg_weight"], "contrast_weight": golden["contrast_weight"],
        "temperature": golden["temperature"], "anchor": anchor,
    }  # fmt: skip


def in_place(model):
    """An optimiser that leaves the gradients to be looked at and changes nothing."""
    return torch.optim.SGD(model.parameters(), lr=0.0)


def plain_denoiser(golden):
    denoiser = plain.PlainDenoiser(golden["num_items"], [golden["hidden_dim"]], golden["time_dim"])
    with torch.no_grad():
        for name, parameter in denoiser_parameters(denoiser).items():
            parameter.copy_(golden[f"denoiser_{name}"])
    return denoiser


def denoiser_parameters(denoiser):
    layers = {"emb_layer": denoiser.time_layer, "in_layers_0": denoiser.layers[0], "out_layers_0": denoiser.layers[1]}
    return {f"{name}_{kind}": getattr(layer, kind) for name, layer in layers.items() for kind in ("weight", "bias")}


def golden_schedule(golden):
    settings = {name: golden[name] for name in ("noise_scale", "noise_min", "noise_max")}
    return DiffusionSchedule(golden["diffusion_steps"], **settings)


def test_golden_graphs_and_embeddings(golden):
    real, modal = graphs_of(golden)
    golden.check("adj_dense", real.to_dense())
    final, views = plain_model(golden)(real, modal)
    num_users = golden["num_users"]
    golden.check("final_user", final[:num_users])
    golden.check("final_item", final[num_users:])
    for name, graph, view in zip(golden.modalities, modal, views, strict=True):
        golden.check(f"modal_adj_dense_{name}", graph.to_dense())
        golden.check(f"view_user_{name}", view[:num_users])
        golden.check(f"view_item_{name}", view[num_users:])


def test_golden_recommend_step(golden):
    model = plain_model(golden)
    own, other = ("main", "modal") if golden["contrast"] else ("modal", "main")
    for anchor in (other, own):
        losses = plain_diffmm.recommend_step(
            model, in_place(model), *graphs_of(golden), *golden_batch(golden), **recommend_settings(golden, anchor)
        )
        golden.check(f"loss_contrast_{anchor}_anchor", losses["contrast"])
    golden.check("loss_bpr", losses["bpr"])
    golden.check("loss_reg", losses["l2"])
    golden.check("loss_total", sum(losses.values()))
    for name, parameter in golden_parameters(golden, model).items():
        golden.check(f"grad_{name}", parameter.grad)


def test_golden_denoising_step(golden):
    denoiser, seen = plain_denoiser(golden), []
    problem = [golden[f"diff_{name}"] for name in ("x0", "t", "noise", "modal_items")]
    problem.append(golden["param_item_embedding"])
    denoiser.register_forward_hook(lambda _, inputs, output: seen.append((inputs[0], output)))
    elbo, msi = plain.denoising_losses(denoiser, golden_schedule(golden), *problem)
    golden.check("diff_xt", seen[0][0])
    golden.check("diff_pred", seen[0][1])
    golden.check("diff_elbo_per_user", elbo)
    golden.check("diff_msi_per_user", msi)
    weight = golden["msi_weight"]
    elbo, msi = plain.denoising_step(denoiser, None, golden_schedule(golden), *problem, weight)
    golden.check("diff_loss", elbo + weight * msi)
    for name, parameter in denoiser_parameters(denoiser).items():
        golden.check(f"diff_grad_{name}", parameter.grad)


def test_golden_reverse_chain(golden):
    edges = plain.rebuild(
        plain_denoiser(golden), golden_schedule(golden), golden.pairs("edges").dense(), k=3, batch_size=7
    )
    users, items = torch.tensor(edges).T
    assert torch.equal(users, torch.arange(golden["num_users"]).repeat_interleave(3))
    golden.check("sample_top3", items.view(-1, 3))


def test_golden_metrics(golden):
    k = golden["eval_k"]
    train, test = (items_by_user(golden.pairs(name)) for name in ("edges", "eval_test_edges"))
    metrics = plain.evaluate(golden["final_user"], golden["final_item"], train, test, k, batch_size=7)
    golden.check("eval_recall", metrics[f"recall@{k}"])
    golden.check("eval_ndcg", metrics[f"ndcg@{k}"])


def test_an_edge_given_twice_counts_once():
    twice = plain_diffmm.adjacency(torch.tensor([0, 0]), torch.tensor([1, 1]), 1, 2)
    assert twice.is_coalesced()
    expected = normalized_adjacency(torch.tensor([[0.0, 1.0]]))
    torch.testing.assert_close(twice.to_dense(), expected)


def our_denoiser(hidden_dims, time_embedding_dim=10):
    denoiser = Denoiser(Columns.whole(ROWS.num_columns), hidden_dims, time_embedding_dim=time_embedding_dim)
    denoiser.initialize(RandomStream.of(3))
    return denoiser


def gradients(denoiser):
    """Of a denoiser of ours, in the order and the form of the plain one's parameters."""
    first = torch.cat([denoiser.input_weight.grad, denoiser.input_time_weight.grad]).T
    hidden = [p.grad for layer in denoiser.hidden_layers for p in layer.parameters()]
    last = [denoiser.output_weight.grad, denoiser.output_bias.grad]
    return [*(p.grad for p in denoiser.time_layer.parameters()), first, denoiser.input_bias.grad, *hidden, *last]


@pytest.mark.parametrize("products", ["direct", "gram"])
@pytest.mark.parametrize(("hidden_dims", "time_embedding_dim"), [((9,), 10), ((9, 6), 5)])
def test_our_denoising_step(products, hidden_dims, time_embedding_dim):
    ours = our_denoiser(hidden_dims, time_embedding_dim)
    twin = plain.PlainDenoiser.copied(ours)
    t, noise = torch.arange(ROWS.num_rows) % 5, random_rows(*CLEAN.shape, seed=1)
    modal_items, item_table = random_rows(17, 4, seed=2), random_rows(17, 4, seed=3)
    users = torch.arange(ROWS.num_rows)
    noisy = NoisyRows(schedule(), ROWS, t, users, ours.columns, noise=GivenRows(noise))
    losses = training_losses(
        ours, noisy, table_CD=modal_items, target_BD=noisy.rows.matmul(item_table), products=products
    )
    (losses.elbo.mean() + 0.3 * losses.signal.mean()).backward()
    sgds = [torch.optim.SGD(model.parameters(), lr=1e-3) for model in (ours, twin)]
    elbo, msi = plain.denoising_step(twin, sgds[1], schedule(), CLEAN, t, noise, modal_items, item_table, 0.3)
    torch.testing.assert_close(losses.elbo.mean().detach(), elbo)
    torch.testing.assert_close(losses.signal.mean().detach(), msi)
    for mine, parameter in zip(gradients(ours), twin.parameters(), strict=True):
        scale = float(parameter.grad.abs().max())
        torch.testing.assert_close(mine, parameter.grad, rtol=1e-4, atol=1e-6 * max(scale, 1.0))
    sgds[0].step()
    for mine, parameter in zip(plain.PlainDenoiser.copied(ours).parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(mine, parameter, rtol=1e-4, atol=1e-5)


def test_initialization_has_the_published_spread():
    torch.manual_seed(1)
    denoiser = plain.PlainDenoiser(400, (300,))
    first, last = denoiser.layers
    assert first.weight.std().item() == pytest.approx((2 / (410 + 300)) ** 0.5, rel=0.02)
    assert last.weight.std().item() == pytest.approx((2 / (400 + 300)) ** 0.5, rel=0.02)
    assert last.bias.std().item() == pytest.approx(0.001, rel=0.15)
    assert sum(p.numel() for p in denoiser.parameters()) == 2 * 400 * 300 + 300 + 400 + 10 * 300 + 110


class GivenStart(GivenRows):
    """In place of the stream of a reverse chain: the noise that its start is corrupted with."""

    def child(self, *parts):
        return self


@pytest.mark.parametrize("k", [1, 3, 40])
@pytest.mark.parametrize("sampling_steps", [0, 4])
def test_our_rebuild(k, sampling_steps):
    ours = our_denoiser((9,))
    torch.manual_seed(0)
    start = GivenStart(torch.randn_like(CLEAN))  # what the twin draws for one batch of everyone
    chain = ReverseChain(schedule(), ours, sampling_steps=sampling_steps)
    _, items = merge_topk(chain.denoise(ROWS, torch.arange(ROWS.num_rows), start), k)
    twin = plain.PlainDenoiser.copied(ours, dropout=0.5)
    torch.manual_seed(0)
    batch_size = ROWS.num_rows if sampling_steps else 10
    edges = plain.rebuild(twin, schedule(), CLEAN, k=k, batch_size=batch_size, sampling_steps=sampling_steps)
    assert edges == [(user, item) for user, row in enumerate(items.tolist()) for item in row]


def test_dropout_is_in_training_only():
    twin = plain.PlainDenoiser.copied(our_denoiser((9,)), dropout=0.5)
    x, t = torch.ones(4, 17), torch.zeros(4, dtype=torch.int64)
    assert not torch.equal(twin.train()(x, t), twin(x, t))
    assert torch.equal(twin.eval()(x, t), twin(x, t))


@pytest.mark.parametrize("k", [1, 5, 30])
def test_our_metrics(k):
    users, items = random_rows(23, 5, 1), random_rows(17, 5, 2)
    both = random_pairs(23, 17, seed=3, share=0.3, empty_rows=[0, 7])
    new = ~ROWS.contains(both.row_ids, both.indices)
    truth = CSR.from_pairs(both.row_ids[new], both.indices[new], num_rows=23, num_columns=17)
    metrics = plain.evaluate(users, items, items_by_user(ROWS), items_by_user(truth), k, batch_size=4)
    ours = evaluate(users, whole(items), truth=truth, masked=[ROWS], ks=[k], batch_size=9, world=World.single())
    assert metrics == pytest.approx({name: ours[name] for name in metrics})


@pytest.mark.parametrize("anchor", ["main", "modal"])
def test_our_recommend_steps(golden, anchor):
    ours, twin = build_model(golden), plain_model(golden)
    assert twin.load_state_dict(ours.state_dict(), strict=False).missing_keys == []
    parameters = [dict(ours.named_parameters())[name] for name, _ in twin.named_parameters()]
    adams = [torch.optim.Adam(group, lr=0.01) for group in (parameters, twin.parameters())]
    contrast = ContrastSettings(golden["contrast_weight"], golden["temperature"], anchor)
    settings = recommend_settings(golden, anchor)
    for _ in range(3):
        batch = RankingBatch.of(ours.shard, *golden_batch(golden), size=16)
        losses = recommend_losses(ours, batch, Optimization(16, 0.01, golden["reg_weight"]), contrast)
        adams[0].zero_grad()
        sum(losses.values()).backward()
        adams[0].step()
        expected = plain_diffmm.recommend_step(twin, adams[1], *graphs_of(golden), *golden_batch(golden), **settings)
        torch.testing.assert_close({name: loss.detach() for name, loss in losses.items()}, expected, rtol=1e-4, atol=0)
