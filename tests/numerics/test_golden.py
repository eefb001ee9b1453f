"""Every array of every golden file, against the code that trains."""

import pytest
import torch

from diffmm_dist.diffusion.denoiser import Denoiser
from diffmm_dist.diffusion.gaussian import ReverseChain, training_losses
from diffmm_dist.diffusion.noise import NoisyRows
from diffmm_dist.diffusion.schedule import DiffusionSchedule
from diffmm_dist.evaluation.evaluator import evaluate
from diffmm_dist.evaluation.topk import merge_topk
from diffmm_dist.graph.hetero import REAL
from diffmm_dist.graph.propagate import propagate
from diffmm_dist.losses.contrastive import info_nce
from diffmm_dist.models.base import Optimization
from diffmm_dist.models.diffmm.model import generated
from diffmm_dist.models.diffmm.phases import contrasted_views, recommend_losses
from diffmm_dist.parallel.columns import Columns
from diffmm_dist.parallel.random import RandomStream
from diffmm_dist.parallel.world import World
from diffmm_dist.sparse import CSR
from tests.support.builders import GivenRows, whole
from tests.support.golden import FILES, Golden, batch_of, build_model, contrast_of, golden_parameters
from tests.support.optional import dgl_or_skip

# Keys that describe the problem and are used as input below; anything else in a file must be checked by a test.
INPUTS = {
    "num_users", "num_items", "embedding_dim", "num_layers", "projection", "contrast", "modal_residual_weight",
    "modal_graph_weight", "temperature", "contrast_weight", "reg_weight", "msi_weight", "edges", "batch_user",
    "batch_pos", "batch_neg", "diffusion_steps", "noise_scale", "noise_min", "noise_max", "time_dim", "hidden_dim",
    "diff_x0", "diff_t", "diff_noise", "diff_modal_items", "eval_test_edges", "eval_k",
}  # fmt: skip
INPUT_PREFIXES = ("feat_", "param_", "modal_edges_", "denoiser_")


@pytest.fixture(params=FILES, ids=lambda path: path.stem)
def golden(request):
    return Golden(request.param)


def build_denoiser(golden):
    denoiser = Denoiser(
        Columns.whole(golden["num_items"]), (golden["hidden_dim"],), time_embedding_dim=golden["time_dim"]
    )
    with torch.no_grad():
        for name, parameter in denoiser_parameters(golden, denoiser).items():
            parameter.copy_(golden[f"denoiser_{name}"])
    return denoiser


def denoiser_parameters(golden, denoiser):
    return {
        "emb_layer_weight": denoiser.time_layer.weight,
        "emb_layer_bias": denoiser.time_layer.bias,
        "in_layers_0_weight": _JoinedInput(denoiser, golden["num_items"]),
        "in_layers_0_bias": denoiser.input_bias,
        "out_layers_0_weight": denoiser.output_weight,
        "out_layers_0_bias": denoiser.output_bias,
    }


class _JoinedInput:
    """The file holds one weight (hidden, items + time code) where we keep two tables, the items' one transposed."""

    def __init__(self, denoiser, num_items):
        self.denoiser, self.num_items = denoiser, num_items

    def copy_(self, weight):
        self.denoiser.input_weight.copy_(weight[:, : self.num_items].T)
        self.denoiser.input_time_weight.copy_(weight[:, self.num_items :].T)

    @property
    def grad(self):
        return torch.cat([self.denoiser.input_weight.grad, self.denoiser.input_time_weight.grad]).T


def schedule_of(golden):
    return DiffusionSchedule(
        golden["diffusion_steps"],
        noise_scale=golden["noise_scale"],
        noise_min=golden["noise_min"],
        noise_max=golden["noise_max"],
    )


def check_adjacency(golden, kernel):
    model = build_model(golden, kernel)
    num_users, num_nodes = golden["num_users"], golden["num_users"] + golden["num_items"]
    identity = torch.eye(num_nodes)
    names = {"adj_dense": REAL} | {f"modal_adj_dense_{m}": generated(m) for m in golden.modalities}
    for name, relation in names.items():
        product = propagate(model.graph, relation, identity[:num_users], identity[num_users:])
        golden.check(name, torch.cat(product))


def check_recommendation(golden, kernel):
    model = build_model(golden, kernel)
    final, views = model()
    golden.check("final_user", final[0])
    golden.check("final_item", final[1])
    for name, (users, items) in views.items():
        golden.check(f"view_user_{name}", users)
        golden.check(f"view_item_{name}", items)
    batch = batch_of(golden, model.shard)
    for anchor in ("main", "modal"):
        terms = [
            info_nce(
                first[side],
                [other[side] for other in others],
                batch.nodes[0][side],
                temperature=golden["temperature"],
                world=World.single(),
            )
            for first, others in contrasted_views(final, list(views.values()), anchor)
            for side in (0, 1)
        ]
        golden.check(f"loss_contrast_{anchor}_anchor", golden["contrast_weight"] * sum(terms))
    losses = recommend_losses(
        model,
        batch,
        Optimization(batch.size, 1e-3, golden["reg_weight"]),
        contrast_of(golden),
    )
    golden.check("loss_bpr", losses["bpr"])
    golden.check("loss_reg", losses["l2"])
    total = sum(losses.values())
    golden.check("loss_total", total)
    total.backward()
    for name, parameter in golden_parameters(golden, model).items():
        golden.check(f"grad_{name}", parameter.grad if parameter.grad is not None else torch.zeros_like(parameter))


def check_schedule(golden):
    schedule = schedule_of(golden)
    for name in golden.arrays:
        if name.startswith("sched_"):
            golden.check(name, getattr(schedule, name.removeprefix("sched_")))


def check_denoising_step(golden, products):
    denoiser = build_denoiser(golden)
    dense = golden["diff_x0"]
    row_ids, columns = dense.nonzero(as_tuple=True)
    rows = CSR.from_pairs(row_ids, columns, num_rows=dense.shape[0], num_columns=dense.shape[1])
    t = golden["diff_t"]
    users = torch.arange(rows.num_rows)
    noisy = NoisyRows(schedule_of(golden), rows, t, users, denoiser.columns, noise=GivenRows(golden["diff_noise"]))
    x_t = noisy.whole
    golden.check("diff_xt", x_t)
    golden.check("diff_pred", denoiser(x_t, t))
    losses = training_losses(
        denoiser, noisy, table_CD=golden["diff_modal_items"], target_BD=rows.matmul(golden["param_item_embedding"]),
        products=products,
    )  # fmt: skip
    golden.check("diff_elbo_per_user", losses.elbo)
    golden.check("diff_msi_per_user", losses.signal)
    loss = losses.elbo.mean() + golden["msi_weight"] * losses.signal.mean()
    golden.check("diff_loss", loss)
    loss.backward()
    for name, parameter in denoiser_parameters(golden, denoiser).items():
        golden.check(f"diff_grad_{name}", parameter.grad)


def check_reverse_chain(golden, stepwise):
    chain = ReverseChain(schedule_of(golden), build_denoiser(golden))
    users = torch.arange(golden["num_users"])
    rows = golden.pairs("edges")
    if stepwise:
        blocks = [(0, chain._step_by_step(rows.dense(), users, RandomStream.of(0)).detach())]
    else:
        blocks = list(chain.denoise(rows, users, RandomStream.of(0)))
    golden.check("sample_denoised", torch.cat([block for _, block in blocks], dim=1))
    _, top = merge_topk(blocks, 3)
    golden.check("sample_top3", top)


def check_metrics(golden):
    k = golden["eval_k"]
    metrics = evaluate(
        golden["final_user"], whole(golden["final_item"]), truth=golden.pairs("eval_test_edges"),
        masked=[golden.pairs("edges")], ks=[k], batch_size=7, world=World.single(),
    )  # fmt: skip
    for name in ("recall", "ndcg", "precision"):
        golden.check(f"eval_{name}", metrics[f"{name}@{k}"])


@pytest.mark.parametrize("kernel", ["csr", "dgl"])
def test_every_array(golden, kernel):
    if kernel == "dgl":
        dgl_or_skip()
    check_adjacency(golden, kernel)
    check_recommendation(golden, kernel)
    check_schedule(golden)
    for products in ("direct", "gram"):
        check_denoising_step(golden, products)
    for stepwise in (False, True):
        check_reverse_chain(golden, stepwise=stepwise)
    check_metrics(golden)
    unchecked = set(golden.arrays) - golden.compared - INPUTS
    assert {name for name in unchecked if not name.startswith(INPUT_PREFIXES)} == set()


def test_there_are_golden_files():
    assert len(FILES) >= 3
