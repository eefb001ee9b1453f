"""Every array of every golden file of DiffKG, against the code that trains: one epoch in both modes."""

import pytest
import torch
from torch.optim import Adam

from diffmm_dist.data.knowledge import Facts
from diffmm_dist.diffusion.gaussian import ReverseChain, training_losses
from diffmm_dist.diffusion.noise import NoisyRows
from diffmm_dist.evaluation.evaluator import evaluate
from diffmm_dist.evaluation.topk import merge_topk
from diffmm_dist.graph.attention import attention_of
from diffmm_dist.graph.hetero import REAL
from diffmm_dist.graph.propagate import propagate, sum_of_layers
from diffmm_dist.losses.contrastive import info_nce
from diffmm_dist.losses.regularization import squared_norm
from diffmm_dist.models.diffkg.generated import generated_facts
from diffmm_dist.models.diffkg.phases import collaborative_signal
from diffmm_dist.parallel.random import RandomStream
from diffmm_dist.parallel.world import World
from diffmm_dist.rows import normalize_rows
from diffmm_dist.sparse import CSR
from tests.support.builders import GivenRows, whole
from tests.support.golden_diffkg import (
    FILES,
    Golden,
    batch_of,
    build,
    denoiser_values,
    dropout_of,
    load_denoiser,
    table_values,
)
from tests.support.optional import dgl_or_skip

INPUTS = {
    "num_users", "num_items", "num_entities", "num_relations", "num_relations_with_inverse", "embedding_dim",
    "num_layers", "num_hops", "hidden_dim", "time_dim", "residual_weight", "message_dropout", "triplets_per_head",
    "contrast_weight", "temperature", "reg_weight", "ckgc_weight", "rebuild_k", "keep_rate", "main_view", "batch_size",
    "learning_rate", "diffusion_steps", "noise_scale", "noise_min", "noise_max", "sampling_steps", "denoiser_dropout",
    "eval_k", "train_edges", "test_edges", "kg_triples_file", "kg_training_edges", "rebuild_order", "rebuild_noise",
    "edge_drop_uniform", "seed",
}  # fmt: skip
INPUT_STARTS = ("param_", "denoiser_")
INPUT_ENDINGS = ("_rows", "_t", "_noise", "_keep", "_batch")
MODES = ("reference", "corrected")


@pytest.fixture(params=FILES, ids=lambda path: path.stem)
def path(request):
    return request.param


class GivenMasks:
    """In place of a random stream: the dropout that the file gives."""

    def __init__(self, kept):
        self.kept = kept

    def dropout_rows(self, ids, columns, *, keep_prob):
        return self.kept[:, columns].float() / keep_prob


def check_graphs(golden, model):
    knowledge = model.knowledge
    own, _ = golden.facts("kg_edges", knowledge)
    assert torch.equal(own.pairs.indptr, knowledge.facts.pairs.indptr)
    assert torch.equal(own.pairs.indices, knowledge.facts.pairs.indices)
    assert torch.equal(own.relations, knowledge.facts.relations)
    golden.compared.add("kg_edges")
    golden.check("kg_rows", knowledge.facts.pairs.dense())
    # Both ways of every distinct triple; ours are made as they are read.
    triples = golden["kg_triples"]
    assert set(map(tuple, own_triples(knowledge).tolist())) <= set(map(tuple, triples.tolist()))
    golden.compared.add("kg_triples")
    identity = torch.eye(sum(golden.num_nodes), dtype=golden.dtype)
    golden.check("adj_dense", torch.cat(propagate(model.graph, REAL, *identity.split(golden.num_nodes))))


def own_triples(knowledge):
    pairs = knowledge.facts.pairs
    return torch.stack([knowledge.own_ids[pairs.row_ids], knowledge.facts.relations, pairs.indices], dim=1)


@torch.no_grad()
def check_network(golden, model):
    """Every hop of both views at the starting values, over all nodes."""
    num_items = golden["num_items"]
    kept, _ = golden.facts("kg_kept_edges", model.knowledge)
    for name, facts in (("original", golden.facts("kg_training_edges", model.knowledge)[0]), ("generated", kept)):
        _, places = golden.facts("kg_training_edges" if name == "original" else "kg_kept_edges", model.knowledge)
        view = model._with_all_nodes(facts)
        width = golden["embedding_dim"]
        maps = [model.relation_embedding @ half.T for half in model.attention_weight.split(width)]
        rows = model.node_rows()
        for hop in range(golden["num_hops"]):
            attention = attention_of(view.to_nodes, rows, *maps)
            for what, values in (("score", attention.scores), ("attention", attention.weights)):
                in_file = torch.empty_like(values)
                in_file[places] = values
                golden.check(f"forward_{name}_hop{hop}_{what}", in_file)
            sums = model.graph.neighbor_sum(view.to_nodes.edges, rows, attention.weights)
            rows = normalize_rows(rows + sums)
            golden.check(f"forward_{name}_hop{hop}_embedding", rows)
        entities = model.attend(view, to_all=True)
        golden.check(f"forward_{name}_entity", entities)
        tables = model.user_embedding, entities[:num_items]
        users, items = sum_of_layers(model.graph, tables, num_layers=golden["num_layers"])
        golden.check(f"forward_{name}_user", users)
        golden.check(f"forward_{name}_item", items)


def check_denoiser(golden, model, products):
    """Every step of the diffusion, in float32."""
    denoiser, shard = model.denoiser, model.denoising.shard
    for name in golden.arrays:
        if name.startswith("sched_"):
            golden.check(name, getattr(model.denoising.schedule, name.removeprefix("sched_")))
    signal = collaborative_signal(model)
    adam = Adam(denoiser.parameters(), lr=golden["learning_rate"])
    weight = golden["ckgc_weight"]
    for step in range(sum(name.startswith("diff_") and name.endswith("_rows") for name in golden.arrays)):
        prefix = f"diff_{step}_"
        ids, t = golden[prefix + "rows"], golden[prefix + "t"]
        rows = shard.rows.select(ids)
        noise = GivenRows(golden[prefix + "noise"], GivenMasks(golden[prefix + "keep"]))
        noisy = NoisyRows(
            model.denoising.schedule, rows, t, ids, shard.columns, noise, 1 - golden["denoiser_dropout"], True
        )
        golden.check(prefix + "xt", noisy._before_dropout(slice(0, golden["num_entities"])))
        hidden = denoiser.hidden(noisy.whole @ denoiser.input_weight, t)
        prediction = torch.addmm(denoiser.output_bias, hidden, denoiser.output_weight.T)
        golden.check(prefix + "pred", prediction)
        golden.check(prefix + "ckgc_entity", prediction @ signal.table_CD)
        losses = training_losses(
            denoiser, noisy, table_CD=signal.table_CD, target_BD=signal.target(rows, ids), products=products
        )
        golden.check(prefix + "elbo", losses.elbo)
        golden.check(prefix + "ckgc", losses.signal)
        loss = (1 - weight) * losses.elbo.mean() + weight * losses.signal.mean()
        golden.check(prefix + "loss", loss)
        adam.zero_grad()
        loss.backward()
        for name, gradient in denoiser_values(denoiser, "grad").items():
            golden.check(f"{prefix}grad_{name}", gradient)
        adam.step()
    for name, value in denoiser_values(denoiser).items():
        golden.check(f"diff_after_{name}", value)


@torch.no_grad()
def check_rebuild(golden, model, stepwise):
    """The reverse chain with the file's denoiser after its steps, the choice of tails, the generated graph."""
    knowledge, num_nodes = model.knowledge, golden["num_entities"]
    load_denoiser(golden, model, "diff_after_")
    chain = ReverseChain(model.denoising.schedule, model.denoiser, sampling_steps=golden["sampling_steps"])
    ids, rows = torch.arange(num_nodes), model.denoising.shard.rows
    stream = RandomStream.of(0)
    if golden["sampling_steps"]:
        stream = GivenStart(GivenRows(golden["rebuild_noise"]))
    blocks = list(chain.denoise(rows, ids, stream))
    if stepwise:
        blocks = [(0, chain._step_by_step(chain._start(rows, ids, stream), ids, stream))]
    denoised = torch.cat([block for _, block in blocks], dim=1)
    golden.check("rebuild_denoised", denoised)
    at_entries = chain.denoised_at(rows, ids, stream)
    torch.testing.assert_close(at_entries, denoised[rows.row_ids, rows.indices], rtol=1e-4, atol=1e-5)
    _, top = merge_topk(blocks, golden["rebuild_k"])
    golden.check("rebuild_top", top)
    chosen = generated_facts(knowledge, top, World.single())
    expected, places = golden.facts("kg_generated_edges", knowledge)
    same_facts(chosen, expected)
    golden.compared.add("kg_generated_edges")
    keep = golden["edge_drop_uniform"][places] + golden["keep_rate"] >= 1
    same_facts(chosen.filter(keep), golden.facts("kg_kept_edges", knowledge)[0])
    golden.compared.add("kg_kept_edges")


class GivenStart:
    """In place of a random stream: the noise of the corrupted rows."""

    def __init__(self, noise):
        self.noise = noise

    def child(self, name):
        assert name == "start"
        return self.noise


def same_facts(ours, expected):
    assert torch.equal(ours.pairs.indptr, expected.pairs.indptr)
    assert torch.equal(ours.pairs.indices, expected.pairs.indices)
    assert torch.equal(ours.relations, expected.relations)


def check_training(golden, model, mode):
    """Every recommendation step of a mode, and what is evaluated after it."""
    model.use_facts(golden.facts("kg_kept_edges", model.knowledge)[0])
    adam = Adam([*model.tables, *model.replicas], lr=golden["learning_rate"])
    names = model.settings.trained_views
    for step in range(sum(name.startswith("rec_") and name.endswith("_batch") for name in golden.arrays)):
        prefix = f"rec_{mode}_{step}_"
        batch = batch_of(golden, step, model.shard)
        views = {
            view: model(name, dropout=dropout_of(golden, step, view, model))
            for view, name in zip(("main", "aux"), names, strict=True)
        }
        for view, rows in views.items():
            for side, values in zip(("user", "item"), rows, strict=True):
                golden.check(f"{prefix}{view}_{side}", values)
        terms = {
            "bpr": batch.bpr(views["main"], divisor=golden["batch_size"]),
            "reg": golden["reg_weight"] * model.squared_norm(),
        }
        for side, name in enumerate(("user", "item")):
            terms[f"contrast_{name}"] = golden["contrast_weight"] * info_nce(
                views["aux"][side], [views["main"][side]], batch.nodes[0][side], temperature=golden["temperature"],
                world=World.single(),
            )  # fmt: skip
        for name, term in terms.items():
            golden.check(f"{prefix}loss_{name}", term)
        total = sum(terms.values())
        golden.check(f"{prefix}loss_total", total)
        adam.zero_grad()
        total.backward()
        for name, gradient in table_values(model, "grad").items():
            golden.check(f"{prefix}grad_{name}", gradient)
        adam.step()
    for name, value in table_values(model).items():
        golden.check(f"rec_{mode}_after_{name}", value)
    users, items = model.embeddings()
    golden.check(f"eval_{mode}_user", users)
    golden.check(f"eval_{mode}_item", items)
    k = golden["eval_k"]
    sizes = {"num_rows": golden["num_users"], "num_columns": golden["num_items"]}
    truth, masked = (CSR.from_pairs(*golden[f"{split}_edges"].unbind(1), **sizes) for split in ("test", "train"))
    metrics = evaluate(
        users.float(), whole(items.float()), truth=truth, masked=[masked], ks=[k], batch_size=7, world=World.single()
    )
    for name in ("recall", "ndcg"):
        golden.check(f"eval_{mode}_{name}", metrics[f"{name}@{k}"])


@pytest.mark.parametrize("kernel", ["csr", "dgl"])
def test_every_array(path, kernel):
    if kernel == "dgl":
        dgl_or_skip()
    golden = Golden(path, torch.float32)
    check_graphs(golden, build(golden, kernel=kernel))
    check_network(golden, build(golden, kernel=kernel))
    for products in ("direct", "gram"):
        check_denoiser(golden, build(golden, kernel=kernel), products)
    for stepwise in (False, True):
        check_rebuild(golden, build(golden, kernel=kernel), stepwise)
    for mode in MODES:
        check_training(golden, build(golden, kernel=kernel, mode=mode), mode)
    unchecked = {
        name for name in golden.arrays.keys() - INPUTS - golden.compared
        if not name.startswith(INPUT_STARTS) and not name.endswith(INPUT_ENDINGS)
        and "_keep_" not in name
    }  # fmt: skip
    assert not unchecked


@pytest.fixture
def double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.usefixtures("double")
def test_the_network_in_float64(path):
    golden = Golden(path, torch.float64)
    check_network(golden, build(golden))
    for mode in MODES:
        check_training(golden, build(golden, mode=mode), mode)


def test_there_are_files():
    assert FILES
    assert isinstance(build(Golden(FILES[0], torch.float32)).knowledge.facts, Facts)
    assert squared_norm(torch.ones(2, 2)) == 4
