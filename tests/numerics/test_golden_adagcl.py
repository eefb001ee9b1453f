"""Every array of every golden file of AdaGCL, against the code that trains: each update of two batches."""

import pytest
import torch

from diffmm_dist.evaluation.evaluator import evaluate
from diffmm_dist.graph.entries import Entries, entry_values
from diffmm_dist.graph.hetero import REAL
from diffmm_dist.graph.propagate import sum_of_layers
from diffmm_dist.losses.batch_contrastive import Repeats, batch_info_nce
from diffmm_dist.models.adagcl.gates import normalizers
from diffmm_dist.parallel.world import World
from diffmm_dist.sparse import CSR
from tests.support.golden_adagcl import (
    FILES,
    TABLES,
    Golden,
    batch_of,
    build,
    draws_of,
    gated_values,
    named_parameters,
)

INPUTS = {
    "num_users", "num_items", "embedding_dim", "num_layers", "edges", "entries", "nominal_batch", "epoch", "gate_beta",
    "temperature", "gate_gamma", "gate_zeta", "contrast_weight", "bottleneck_weight", "reg_weight", "l0_weight",
    "kl_weight", "learning_rate", "adam_beta1", "adam_beta2", "adam_eps", "gate_adam_eps", "stored_tables",
    "eval_test_edges", "eval_k",
}  # fmt: skip
INPUT_ENDINGS = ("_batch_user", "_batch_pos", "_batch_neg", "_generate_eps", "_vgae_eps", "_denoise_noise")
UPDATES = ("contrast", "bottleneck", "recommend")


@pytest.fixture(params=[(path, dtype) for path in FILES for dtype in (torch.float64, torch.float32)],
                ids=lambda param: f"{param[0].stem}-{str(param[1]).removeprefix('torch.')}")  # fmt: skip
def golden(request):
    return Golden(*request.param)


class Follower:
    """Compares what the phase has before, between and after the steps of one batch with the file."""

    def __init__(self, golden, phase, model, step):
        self.golden, self.phase, self.model = golden, phase, model
        self.relation = model.graph.relations[REAL]
        self.prefix = f"step{step}_"
        self.batch = batch_of(golden, step, model.shard)
        self.draws = draws_of(golden, step, self.relation)
        self.updates = iter(UPDATES)
        self.old_rows = None

    def check(self, name, actual):
        self.golden.check(self.prefix + name, actual)

    def check_entries(self, name, values):
        """Compare values of entries, (V,) or a list of a layer's each."""
        stacked = torch.stack(values) if isinstance(values, list) else values
        in_file = torch.empty_like(stacked)
        in_file[..., self.golden.places(self.relation)] = stacked
        self.check(name, in_file)

    def run(self):
        tables = self.phase.optimizers["tables"]
        hooks = [tables.register_step_pre_hook(self.before_tables), tables.register_step_post_hook(self.after_tables)]
        self.check_generation()
        values = self.phase.update(self.batch, self.draws, gate_temperature=self.golden["gate_beta"])
        for hook in hooks:
            hook.remove()
        self.check_losses(values)
        for room, prefix in (("vgae", "vgae"), ("gate", "denoise")):
            for name, parameter in named_parameters(self.model).items():
                if name.startswith(room):
                    self.check(f"{prefix}_grad_{name}", parameter.grad)
                    self.check(f"{prefix}_after_{name}", parameter)

    @torch.no_grad()
    def check_generation(self):
        model, pruning = self.model, self.model.pruning
        own_tables = pruning.user_embedding, pruning.item_embedding
        state = torch.cat(sum_of_layers(model.graph, own_tables, num_layers=2))
        mean, std = pruning.encode(model.graph)
        for call, noise in (("generate", self.draws.view_noise), ("vgae", self.draws.loss_noise)):
            latents = mean + std * noise
            for name, value in (("state", state), ("mean", mean), ("std", std), ("z", latents)):
                self.check(f"{call}_{name}", value)
            split = latents.split(self.golden.num_nodes)
            if call == "generate":
                self.check_view(split)
            else:
                users = split[0][self.batch.user_rows]
                for side, rows in (("pos", self.batch.pos_items), ("neg", self.batch.neg_items)):
                    self.check(f"vgae_prob_{side}", pruning.decode(users, split[1][rows]).sigmoid())

    def check_view(self, latents):
        users, items = latents
        by_user, pruning = self.relation.to_users.by_target, self.model.pruning
        edges = pruning.decode(users[by_user.row_ids], items[by_user.indices])
        logits = Entries(edges, edges, pruning.decode(users, users), pruning.decode(items, items)).joined()
        self.check_entries("generate_edge_probability", logits.sigmoid())
        self.view_V, share = pruning.prune(self.model.graph, latents)
        self.check_entries("generate_view1_values", self.view_V)
        self.check_entries("generate_kept", (self.view_V != 0).double())
        assert share == pytest.approx(float(self.golden[self.prefix + "generate_kept"].double().mean()))
        self.check_views("contrast")

    @torch.no_grad()
    def check_views(self, update):
        pruned, gated = self.model.pruned_view(self.view_V), self.model.gated_view()
        self.check(f"{update}_view1_out", torch.cat(pruned))
        self.check(f"{update}_view2_out", torch.cat(gated))
        view = self.model.gating.view(self.model.graph, self.model.tables)
        self.check_gates(f"{update}_view2", view, added=0.0)
        nodes = self.batch.user_rows, self.batch.pos_items  # of each of the 2 b rows
        rows = [torch.cat([part[side] for part, side in zip(v, nodes, strict=True)]) for v in (pruned, gated)]
        if update == "contrast":
            self.check("contrast_rows", self.row_losses(*rows))
            self.old_rows = rows
        else:
            for number, (new, old) in enumerate(zip(rows, self.old_rows, strict=True), 1):
                self.check(f"bottleneck_rows_view{number}", self.row_losses(new, old))

    def row_losses(self, anchors, targets):
        """The loss of each of the batch's rows, repeats as rows of their own: each row alone is an anchor once."""
        ones = torch.ones(len(anchors))
        losses = []
        for row in range(len(anchors)):
            others = Repeats(ones[:1], torch.roll(ones, -row), 0, [len(ones)], 1, World.single())
            losses.append(batch_info_nce(anchors[[row]], torch.roll(targets, -row, dims=0), others,
                                         temperature=self.golden["temperature"]))  # fmt: skip
        return torch.stack(losses)

    def check_gates(self, name, gated, *, added):
        self.check_entries(f"{name}_gate_logit", gated.log_a)
        self.check_entries(f"{name}_gate", gated.gates)
        values = [
            gated_values(gates, normalizers(self.model.graph, gates, added=added), self.relation)
            for gates in gated.gates
        ]
        self.check_entries(f"{name}_gated_values", values)

    def before_tables(self, *_):
        self.update = next(self.updates)
        if self.update == "recommend":
            self.check_final()
            self.check_denoising()
        for name in TABLES:
            self.check(f"{self.update}_grad_{name}", getattr(self.model, name).grad)

    def after_tables(self, *_):
        for name in TABLES:
            self.check(f"{self.update}_after_{name}", getattr(self.model, name))
        if self.update == "contrast":
            self.check_views("bottleneck")

    @torch.no_grad()
    def check_final(self):
        for side, rows in zip(("user", "item"), self.model(), strict=True):
            self.check(f"recommend_final_{side}", rows)

    def check_denoising(self):
        """The pass that trains the gates: on the tables of the beginning, which the file follows, and on live ones."""
        for mode, name in (("reference", "denoise"), ("corrected", "denoise_live")):
            self.model.mode = mode
            noise, temperature = self.draws.gate_noise, self.golden["gate_beta"]
            gated = self.model.gating.train_pass(self.model.graph, self.model.gate_input(), noise, temperature)
            self.check_gates(name, gated, added=1e-6)
            self.check(f"{name}_out", torch.cat(gated.rows))
            if mode == "corrected":
                losses = self.phase._gating_losses(self.batch, noise, temperature)
                self.check_terms(name, losses, {"bpr": "bpr", "reg": "l2", "l0": "l0"})
                parameters = {k: v for k, v in named_parameters(self.model).items() if k.startswith("gate")}
                gradients = torch.autograd.grad(sum(losses.values()), list(parameters.values()))
                for parameter, gradient in zip(parameters, gradients, strict=True):
                    self.check(f"{name}_grad_{parameter}", gradient)
        self.model.mode = "reference"

    def check_terms(self, name, losses, terms):
        for term, ours in terms.items():
            self.check(f"{name}_loss_{term}", losses[ours])
        self.check(f"{name}_loss", sum(losses.values()))

    def check_losses(self, values):
        self.check("contrast_loss", values["contrast"])
        self.check("bottleneck_loss", values["bottleneck"])
        self.check("recommend_loss_bpr", values["bpr"])
        self.check("recommend_loss_reg", values["l2"])
        of = {room: {k.removeprefix(room): v for k, v in values.items() if k.startswith(room)}
              for room in ("pruning_", "gates_")}  # fmt: skip
        self.check_terms("vgae", of["pruning_"], {"bce": "bce", "kl": "kl", "bpr": "bpr", "reg": "l2"})
        self.check_terms("denoise", of["gates_"], {"bpr": "bpr", "reg": "l2", "l0": "l0"})


def test_every_array(golden):
    phase, model = build(golden)
    relation = model.graph.relations[REAL]
    values = torch.empty_like(entry_values(relation))
    values[golden.places(relation)] = entry_values(relation)
    golden.check("adj_values", values)
    for step in range(2):
        Follower(golden, phase, model, step).run()
    users, items = model.embeddings()
    golden.check("final_user", users)
    golden.check("final_item", items)
    check_metrics(golden, users, items, model)
    described = INPUTS | {name for name in golden.arrays if name.startswith("param_") or name.endswith(INPUT_ENDINGS)}
    assert set(golden.arrays) == golden.compared | described


def check_metrics(golden, users, items, model):
    num_users, num_items = golden.num_nodes
    edges = golden["eval_test_edges"]
    truth = CSR.from_pairs(edges[:, 0], edges[:, 1], num_rows=num_users, num_columns=num_items)
    k = golden["eval_k"]
    metrics = evaluate(
        users, [(torch.arange(num_items), items)], truth=truth, masked=[model.graph.relations[REAL].pairs], ks=[k],
        batch_size=5, world=World.single(),
    )  # fmt: skip
    golden.check("eval_recall", metrics[f"recall@{k}"])
    golden.check("eval_ndcg", metrics[f"ndcg@{k}"])
