import pytest
import torch

from diffmm_dist.diffusion.equations import p_sample_loop
from diffmm_dist.errors import UserError
from diffmm_dist.graph.equations import normalized_adjacency
from diffmm_dist.graph.hetero import REAL, HeteroGraph
from diffmm_dist.graph.relation import Relation
from diffmm_dist.losses.equations import bpr, info_nce
from diffmm_dist.models.base import Optimization, PhaseContext
from diffmm_dist.models.common.denoising import DiffusionSettings
from diffmm_dist.models.common.ranking_batch import RankingBatch
from diffmm_dist.models.diffmm.model import DiffMM
from diffmm_dist.models.diffmm.phases import ContrastSettings, diffmm_phases, recommend_losses
from diffmm_dist.parallel.world import World
from tests.support import reference
from tests.support.builders import as_matrix, random_pairs, training_data

WIDTHS = {"visual": 6, "textual": 9, "acoustic": 3}
CONTRAST = ContrastSettings(0.1, 0.5, "main")
OPTIMIZATION = Optimization(batch_size=16, learning_rate=0.01, l2_weight=1e-3)


def build(num_modalities=2, projection="affine", num_layers=1, interactions=None, **diffusion):
    interactions = interactions or random_pairs(12, 10, seed=1, empty_rows=[11], empty_columns=[9])
    data = training_data(interactions, dict(list(WIDTHS.items())[:num_modalities]))
    settings = {
        "num_timesteps": 5, "noise_scale": 0.1, "noise_min": 1e-4, "noise_max": 0.02, "sampling_steps": 0,
        "sampling_noise": False, "denoiser_hidden_dims": (7,), "time_embedding_dim": 10, "input_dropout_prob": 0.5,
        "normalize_input": False, "signal_weight": 0.1, "rebuild_topk": 2, "edge_keep_prob": 0.5,
    }  # fmt: skip
    return DiffMM(
        data, HeteroGraph({REAL: Relation.normalized(interactions)}), seed=4, embedding_dim=5, num_layers=num_layers,
        modality_projection=projection, residual_weight=0.4, modal_graph_weight=0.3,
        diffusion=DiffusionSettings(**{**settings, **diffusion}),
    )  # fmt: skip


def with_generated(model, seed=2):
    model.generated_items.random_(model.shard.num_items, generator=torch.Generator().manual_seed(seed))
    model.use_generated_items(3)
    return model


def reference_forward(model, kinds):
    """The same model from dense matrices, by the sequence of products of its equations."""
    graph = model.graph
    projected = []
    for name in model.modalities:
        layer = model.projections[name]
        bias = getattr(layer, "bias", None)
        projected.append(reference.project(model.data.features[name], layer.weight, bias, kinds[name]))
    return reference.diffmm_forward(
        model.user_embedding, model.item_embedding, projected, model.modality_logits,
        as_matrix(graph.relations[REAL]), [as_matrix(graph.relations[f"generated_{m}"]) for m in model.modalities],
        num_layers=model._num_layers, residual_weight=0.4, modal_graph_weight=0.3,
    )  # fmt: skip


def gradients(model, outputs):
    model.zero_grad()
    sum((i + 1) * output.sin().sum() for i, output in enumerate(outputs)).backward()
    return [p.grad for n, p in model.named_parameters() if not n.startswith("denoisers")]


@pytest.mark.parametrize("num_modalities", [1, 2, 3])
@pytest.mark.parametrize("num_layers", [0, 1, 3])
@pytest.mark.parametrize("projection", ["matrix", "affine"])
def test_forward_and_gradients_equal_the_reference(num_modalities, num_layers, projection):
    model = with_generated(build(num_modalities, projection, num_layers))
    with torch.no_grad():
        model.modality_logits.add_(torch.linspace(0, 1, num_modalities))
    final, views = model()
    ours = [torch.cat(final), *(torch.cat(view) for view in views.values())]
    plain_final, plain_views = reference_forward(model, dict.fromkeys(model.modalities, projection))
    for mine, plain in zip(ours, [plain_final, *plain_views], strict=True):
        torch.testing.assert_close(mine, plain)
    for mine, plain in zip(gradients(model, ours), gradients(model, [plain_final, *plain_views]), strict=True):
        torch.testing.assert_close(mine, plain, rtol=1e-4, atol=1e-5)


def test_projections_may_differ_by_modality():
    kinds = {"visual": "matrix", "textual": "affine"}
    model = with_generated(build(2, kinds))
    torch.testing.assert_close(torch.cat(model()[0]), reference_forward(model, kinds)[0])
    with pytest.raises(UserError, match="names visual but the modalities are visual, textual"):
        build(2, {"visual": "matrix"})


def test_without_modalities_it_says_what_to_do():
    with pytest.raises(UserError, match=r"model\.name=lightgcn"):
        build(0)


@pytest.mark.parametrize(("anchor", "num_modalities", "num_terms"), [("main", 3, 6), ("modal", 3, 6), ("modal", 1, 0)])
def test_losses_equal_the_reference(anchor, num_modalities, num_terms):
    model = with_generated(build(num_modalities))
    batch_users, pos, neg = torch.tensor([0, 3, 3, 11]), torch.tensor([1, 1, 8, 0]), torch.tensor([5, 9, 2, 2])
    batch = RankingBatch.of(model.shard, batch_users, pos, neg, size=4)
    losses = recommend_losses(model, batch, OPTIMIZATION, ContrastSettings(0.1, 0.5, anchor))
    final, views = reference_forward(model, dict.fromkeys(model.modalities, "affine"))
    users, items = final[:12], final[12:]
    assert losses["bpr"].item() == pytest.approx(
        bpr(users[batch_users], items[pos], items[neg], divisor=16).item(), rel=1e-5
    )
    tables = model.user_embedding.square().sum() + model.item_embedding.square().sum()
    assert losses["l2"].item() == pytest.approx(1e-3 * tables.item(), rel=1e-5)
    pairs = [(final, view) for view in views]
    if anchor == "modal":
        pairs = [(views[i], views[j]) for i in range(len(views)) for j in range(i + 1, len(views))]
    terms = []
    for x, y in pairs:
        terms.append(info_nce(x[:12], y[:12], batch_users, temperature=0.5))
        terms.append(info_nce(x[12:], y[12:], pos, temperature=0.5))
    assert len(terms) == num_terms
    if num_terms:
        assert losses["contrast"].item() == pytest.approx(0.1 * sum(terms).item(), rel=1e-5)
    else:
        assert "contrast" not in losses
    # Dropped edges and loops leave a cold user without any input in some view: a row of zeros, not of NaN.
    sum(losses.values()).backward()
    for name, parameter in model.named_parameters():
        assert name.startswith("denoisers") or bool(torch.isfinite(parameter.grad).all()), name


def run_epoch(model, epoch=0, contrast=CONTRAST):
    values = {}
    for phase in diffmm_phases(model, OPTIMIZATION, contrast):
        for index in range(phase.begin(PhaseContext(World.single(), 7, epoch))):
            for name, value in phase.step(index).items():
                values.setdefault(f"{phase.name}/{name}", []).append(float(value))
        values |= {f"{phase.name}/{name}": value for name, value in phase.finish().items()}
    return values


def test_denoise_trains_the_denoisers_alone_and_recommend_the_rest():
    model = build()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    denoise, rebuild, recommend = diffmm_phases(model, OPTIMIZATION, CONTRAST)
    context = PhaseContext(World.single(), 7, 0)

    def changed(phase):
        for index in range(phase.begin(context)):
            phase.step(index)
        phase.finish()
        names = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
        before.update({name: parameter.detach().clone() for name, parameter in model.named_parameters()})
        return names

    everything = set(before)
    denoisers = {name for name in everything if name.startswith("denoisers.")}
    assert changed(denoise) == denoisers
    assert changed(rebuild) == set()
    assert changed(recommend) == everything - denoisers


def test_rebuild_takes_the_top_items_of_the_denoised_rows():
    model = build(rebuild_topk=3, edge_keep_prob=1.0)
    values = run_epoch(model)
    train = reference.dense(model.data.interactions)
    for index, name in enumerate(model.modalities):
        denoiser = model.denoiser(name)
        denoised = p_sample_loop(denoiser, train, betas_T=model.denoising.schedule.betas).detach()
        assert torch.equal(model.generated_items[:, index], reference.topk(denoised, 3))
        edges = torch.zeros(12, 10).scatter_(1, model.generated_items[:, index], 1)
        torch.testing.assert_close(as_matrix(model.graph.relations[f"generated_{name}"]), normalized_adjacency(edges))
        observed = (edges * train).sum() / edges.sum()
        assert values[f"rebuild/observed_share_{name}"] == pytest.approx(observed.item())
        assert values[f"rebuild/new_share_{name}"] == pytest.approx(1 - observed.item())


def test_more_edges_than_items_gives_every_item():
    model = build(rebuild_topk=50)
    run_epoch(model)
    assert model.generated_items.shape[2] == 10
    assert torch.equal(model.generated_items.sort(dim=2).values, torch.arange(10).expand(12, 2, 10))


def test_an_epoch_reports_every_loss_and_weight():
    values = run_epoch(build(3))
    for name in ("visual", "textual", "acoustic"):
        assert {f"denoise/elbo_{name}", f"denoise/msi_{name}", f"recommend/weight_{name}"} <= set(values)
    assert {"recommend/bpr", "recommend/l2", "recommend/contrast", "recommend/loss"} <= set(values)
    assert sum(values[f"recommend/weight_{name}"] for name in WIDTHS) == pytest.approx(1)
    assert len(values["recommend/bpr"]) == -(-build().data.num_interactions // 16)


def test_training_lowers_the_losses():
    model = build(interactions=random_pairs(40, 20, seed=5))
    first = run_epoch(model, 0)
    for epoch in range(1, 15):
        last = run_epoch(model, epoch)
    for name in ("recommend/bpr", "denoise/elbo_visual"):
        assert sum(last[name]) < 0.9 * sum(first[name])


def test_the_same_seed_gives_the_same_model():
    first, second = build(), build()
    for (name, mine), (_, other) in zip(first.state_dict().items(), second.state_dict().items(), strict=True):
        assert torch.equal(mine, other), name
