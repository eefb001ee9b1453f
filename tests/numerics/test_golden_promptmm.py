"""Every array of every golden file of PromptMM, against the code that trains: two steps of teacher and of student."""

import pytest
import torch
from torch.optim import AdamW

from diffmm_dist.evaluation.evaluator import evaluate
from diffmm_dist.losses import distillation
from diffmm_dist.models.promptmm.objectives import student_losses, teacher_losses
from diffmm_dist.models.promptmm.student import TwiceAdamW
from diffmm_dist.models.promptmm.targets import NoisyTeacher, PromptedTeacher
from diffmm_dist.models.promptmm.teacher import Views
from diffmm_dist.models.promptmm.tokens import principal_components
from diffmm_dist.parallel.random import RandomStream
from diffmm_dist.parallel.world import World
from diffmm_dist.sparse import CSR
from tests.support.builders import whole
from tests.support.golden_promptmm import (
    FILES,
    Golden,
    batch_of,
    build,
    masks_of,
    optimization_of,
    student_losses_of,
    student_parameters,
    teacher_losses_of,
    teacher_parameters,
)
from tests.support.optional import dgl_or_skip

SIDES = ("user", "item")
INPUTS = ("_batch_", "_mask_", "param_", "feat_", "_list_items", "_unused_")
EVALUATED = {"recall": "recall", "precision": "precision", "hit_ratio": "hit_rate", "ndcg_standard": "ndcg"}


@pytest.fixture(params=FILES, ids=lambda path: path.stem)
def path(request):
    return request.param


@pytest.fixture(params=[torch.float64, torch.float32], ids=["float64", "float32"])
def dtype(request):
    torch.set_default_dtype(request.param)
    yield request.param
    torch.set_default_dtype(torch.float32)


@pytest.fixture(params=["csr", "dgl"])
def kernel(request):
    if request.param == "dgl":
        dgl_or_skip()
    return request.param


def check_sides(golden, name, rows):
    for side, values in zip(SIDES, rows, strict=True):
        golden.check(name.format(side=side), values)


def check_graph_and_tokens(golden, teacher):
    """N_u and N_i column by column, the tokens, and the principal components up to their signs."""
    graph, (num_users, num_items) = teacher.graph, golden.num_nodes
    relation = graph.relations["interacts"]
    golden.check("norm_user_item", graph.neighbor_sum(relation.to_users, torch.eye(num_items)))
    golden.check("norm_item_user", graph.neighbor_sum(relation.to_items, torch.eye(num_users)))
    golden.check("token_item", teacher.item_tokens)
    golden.check("token_user", teacher.user_tokens)
    for name in golden.modalities:
        expected = golden[f"token_{name}"]
        found = principal_components(
            golden[f"feat_{name}"], num_components=golden["embedding_dim"], num_items=num_items, world=World.single()
        )
        golden.check(f"token_{name}", found * torch.sign((found * expected).sum(dim=0)))


def check_teacher(golden, teacher):
    """Every intermediate, loss, gradient and step of the teacher."""
    adam = AdamW(teacher.parameters(), lr=golden["teacher_lr"], weight_decay=golden["teacher_weight_decay"], fused=True)
    for step in range(2):
        prefix = f"teacher{step}"
        masks = masks_of(golden, f"{prefix}_teacher_mask", teacher.shard)
        batch = batch_of(golden, prefix, teacher.shard)
        check_forward(golden, teacher, prefix, masks)
        terms = teacher_losses(teacher, batch, teacher_losses_of(golden), optimization_of(golden), dropout=masks)
        golden.check(f"{prefix}_loss_bpr", terms["bpr"])
        golden.check(f"{prefix}_loss_l2", terms["l2"])
        golden.check(f"{prefix}_loss_feature_l2", terms["modal_l2"])
        golden.check(f"{prefix}_loss_prompt_bpr", terms["prompt"] / golden["prompt_bpr_weight"])
        for name in golden.modalities:
            golden.check(f"{prefix}_loss_bpr_{name}", terms[f"bpr_{name}"] / golden["modal_bpr_weight"])
        total = sum(terms.values())
        golden.check(f"{prefix}_loss_total", total)
        adam.zero_grad()
        total.backward()
        for name, parameter in teacher_parameters(teacher).items():
            golden.check(f"{prefix}_grad_{name}", parameter.grad)
        adam.step()
        for name, parameter in teacher_parameters(teacher).items():
            golden.check(f"{prefix}_after_{name}", parameter)
    with torch.no_grad():
        views = teacher()
    check_views(golden, "eval_teacher", views)
    check_sides(golden, "student_param_{side}_embedding", views.final)  # the student begins as its teacher
    check_metrics(golden, "eval_teacher", views.final)


@torch.no_grad()
def check_forward(golden, teacher, prefix, masks):
    prompts = teacher.prompts()
    check_sides(golden, f"{prefix}_prompt_{{side}}", prompts)
    for name in golden.modalities:
        features = golden[f"feat_{name}"]
        golden.check(f"{prefix}_feature_prompt_{name}", prompts[1] @ (prompts[1].T @ features))
        golden.check(f"{prefix}_reduced_{name}", teacher.reduced(name, prompts[1]) * masks(name))
    for number, rows in enumerate(teacher.layers(teacher.prompted_tables(prompts))):
        check_sides(golden, f"{prefix}_layer{number}_{{side}}", rows)
    check_views(golden, prefix, teacher(masks))


def check_views(golden, prefix, views, *, final="_final_", modal="_modal_"):
    final = "_" if prefix.startswith("eval") else final
    check_sides(golden, f"{prefix}{final}{{side}}", views.final)
    for name, rows in views.modal.items():
        check_sides(golden, f"{prefix}{modal}{{side}}_{name}", rows)


def check_metrics(golden, prefix, rows):
    ks = golden["eval_ks"].tolist()
    sizes = {"num_rows": golden["num_users"], "num_columns": golden["num_items"]}
    truth, masked = (CSR.from_pairs(*golden[name].unbind(1), **sizes) for name in ("eval_test_edges", "edges"))
    metrics = evaluate(
        rows[0].float(), whole(rows[1].float()), truth=truth, masked=[masked], ks=ks, batch_size=7,
        world=World.single(), retrieved_ndcg=True,
    )  # fmt: skip
    for theirs, ours in (EVALUATED | {"ndcg_retrieved": "ndcg_retrieved"}).items():
        golden.check(f"{prefix}_{theirs}", [metrics[f"{ours}@{k}"] for k in ks])


class GivenDropout(NoisyTeacher):
    """The released program's targets with the dropout of a file."""

    def __init__(self, teacher, masks):
        super().__init__(teacher)
        teacher.dropout = lambda stream: masks
        self.begin()


def check_released_student(golden, model):
    """Every term, derivative and step of the released program's student."""
    student, teacher = model.student, model.teacher
    kind = TwiceAdamW if student.settings.kind == "lightgcn" else AdamW
    adam = kind(student.parameters(), lr=golden["student_lr"], weight_decay=golden["student_weight_decay"], fused=True)
    for step in range(2):
        prefix, shard = f"student{step}", student.shard
        batch = batch_of(golden, prefix, shard, lists=True)
        views = GivenDropout(teacher, masks_of(golden, f"{prefix}_teacher_mask", shard))(RandomStream(0))
        check_views(golden, prefix, views, final="_teacher_final_", modal="_teacher_modal_")
        modal_items = {name: items for name, (_, items) in views.modal.items()}
        final = student(modal_items, masks_of(golden, f"{prefix}_student_mask", shard))
        check_sides(golden, f"{prefix}_final_{{side}}", final)
        check_scores(golden, prefix, final, views)
        check_terms(golden, prefix, final, views, batch)
        terms = student_losses(
            final, views, batch, student_losses_of(golden), l2_weight=golden["l2_weight"], released=True
        )
        total = sum(terms.values())
        golden.check(f"{prefix}_loss_total", total)
        adam.zero_grad()
        total.backward()
        for name, parameter in student_parameters(student).items():
            # Of a table with two names each name has half of the gradient.
            twice = 2 if kind is TwiceAdamW else 1
            golden.check(f"{prefix}_grad_{name}", parameter.grad / twice)
            if twice == 2:
                golden.check(f"{prefix}_grad_{name}_twin", parameter.grad / twice)
                parameter.grad /= twice
        adam.step()
        for name, parameter in student_parameters(student).items():
            golden.check(f"{prefix}_after_{name}", parameter)
    with torch.no_grad():
        modal_items = {name: items for name, (_, items) in teacher().modal.items()}
        final = student(modal_items, masks_of(golden, "eval_student_mask", student.shard))
    check_sides(golden, "eval_student_{side}", final)
    check_metrics(golden, "eval_student", final)


def check_scores(golden, prefix, final, views):
    """What the released program takes for log-probabilities."""
    users, pos, neg = (golden[f"{prefix}_batch_{part}"] for part in ("user", "pos", "neg"))
    listed = golden[f"{prefix}_list_items"]

    def margins(rows):
        return (rows[0][users] * (rows[1][pos] - rows[1][neg])).sum(dim=1)

    def lists(rows):
        return (rows[0][users][:, None] * rows[1][listed]).sum(dim=2)

    golden.check(f"{prefix}_pair_student", distillation.released_pair(margins(final)))
    golden.check(f"{prefix}_pair_teacher", distillation.released_pair(margins(views.final)))
    golden.check(f"{prefix}_list_student", distillation.released_list(lists(final)))
    for name, rows in views.modal.items():
        golden.check(f"{prefix}_list_teacher_{name}", distillation.released_list(lists(rows)))
    if prefix != "student0":
        return
    for name, rows in views.modal.items():
        found = distillation.list_divergence(lists(final), lists(rows))
        golden.check(f"student0_dkd_target_{name}", found.target_B.mean())
        golden.check(f"student0_dkd_others_{name}", found.others_B.mean())


def check_terms(golden, prefix, final, views, batch):
    """Each unweighted term, and its derivative for the final tables."""
    leaves = [rows.detach().requires_grad_() for rows in final]
    unweighted = student_losses_of(golden, pair_weight=1.0, list_weight=1.0, embedding_weight=1.0)
    terms = student_losses(leaves, views, batch, unweighted, l2_weight=golden["l2_weight"], released=True)
    for name, term in terms.items():
        golden.check(f"{prefix}_loss_{name}", term)
    embedding = sum(term for name, term in terms.items() if name.startswith("embedding_"))
    golden.check(f"{prefix}_loss_embedding", embedding)
    derived = {name: term for name, term in terms.items() if not name.startswith("embedding_")}
    for name, term in (derived | {"embedding": embedding}).items():
        gradients = torch.autograd.grad(term, leaves, retain_graph=True, materialize_grads=True)
        check_sides(golden, f"{prefix}_dfinal_{{side}}_{name}", gradients)


def check_paper(golden, kernel):
    """The terms of the paper, their derivatives for the student's tables and for the prompt, the student's graph."""
    model, _ = build(golden, kernel=kernel, released=False)
    student, teacher = model.student, model.teacher
    with torch.no_grad():
        for name, parameter in teacher_parameters(teacher).items():
            parameter.copy_(golden[f"teacher1_after_{name}"])
    if student.settings.kind == "lightgcn":
        check_sides(golden, "corrected_final_{side}", student({}))
    targets = PromptedTeacher(teacher)
    targets.begin()
    views = targets(RandomStream(0))
    batch = batch_of(golden, "student0", student.shard, lists=True)
    leaves = [golden[f"student0_final_{side}"].clone().requires_grad_() for side in SIDES]
    settings = student_losses_of(golden, pair_weight=1.0, list_weight=1.0, embedding_weight=1.0)
    terms = student_losses(leaves, views, batch, settings, l2_weight=0.0, released=False)
    golden.check("paper_pair", terms["pair"])
    for name in golden.modalities:
        golden.check(f"paper_list_{name}", terms[f"list_{name}"])
        golden.check(f"paper_embedding_{name}", terms[f"embedding_{name}"])
    check_lists(golden, leaves, views)
    total = sum(term for name, term in terms.items() if name not in ("bpr", "l2"))
    golden.check("paper_total", total)
    total.backward()
    check_sides(golden, "paper_dfinal_{side}", [leaf.grad for leaf in leaves])
    for name, parameter in teacher_parameters(teacher).items():
        if name.startswith("prompt_"):
            golden.check(f"paper_grad_{name}", parameter.grad)
        else:
            assert parameter.grad is None  # the teacher is held


@torch.no_grad()
def check_lists(golden, final, views):
    users, listed = golden["student0_batch_user"], golden["student0_list_items"]
    scores = (final[0][users][:, None] * final[1][listed]).sum(dim=2)
    for name, rows in views.modal.items():
        found = distillation.list_divergence(scores, (rows[0][users][:, None] * rows[1][listed]).sum(dim=2))
        golden.check(f"paper_list_target_{name}", found.target_B.mean())
        golden.check(f"paper_list_others_{name}", found.others_B.mean())
        golden.check(f"paper_list_weight_{name}", found.weight_B)


def check_misplaced_graph(golden, model):
    """The released program's matrix, from what the student makes of every unit vector of its stack."""
    if model.student.settings.kind != "lightgcn":
        return
    student, num_nodes = model.student, sum(golden.num_nodes)
    halves = student._misplaced(tuple(torch.eye(num_nodes).split(golden.num_nodes)))
    graph = student.graph
    relation = graph.relations["interacts"]
    rows = graph.neighbor_sum(relation.to_users, halves[1]), graph.neighbor_sum(relation.to_items, halves[0])
    golden.check("student_adj", torch.cat(rows))


def test_every_array(path, dtype, kernel):
    golden = Golden(path, dtype)
    model, _ = build(golden, kernel=kernel)
    check_graph_and_tokens(golden, model.teacher)
    check_misplaced_graph(golden, model)
    check_teacher(golden, model.teacher)
    check_released_student(golden, model)
    check_paper(golden, kernel)
    scalars = {name for name, array in golden.arrays.items() if array.ndim == 0}
    inputs = {name for name in scalars if "_loss" not in name and not name.startswith("p")}
    unchecked = {
        name for name in golden.arrays.keys() - golden.compared - inputs
        if not any(part in name for part in INPUTS)
        and name not in ("edges", "eval_test_edges", "eval_ks", "pair_weight", "prompt_bpr_weight")
    }  # fmt: skip
    assert not unchecked


def test_there_are_files():
    assert FILES
    assert isinstance(build(Golden(FILES[0], torch.float32))[0].teacher(), Views)
