"""PromptMM where the golden files do not reach: tokens, narrow students, two names of one table, settings, teachers."""

import pytest
import torch
from torch.optim import AdamW

from diffmm_dist import host_rows
from diffmm_dist.errors import UserError
from diffmm_dist.graph.hetero import REAL, HeteroGraph
from diffmm_dist.graph.relation import Relation
from diffmm_dist.models.base import Optimization, PhaseContext
from diffmm_dist.models.promptmm.candidates import FromTeacher
from diffmm_dist.models.promptmm.model import PromptMM
from diffmm_dist.models.promptmm.narrow import item_map, narrowed, narrowing
from diffmm_dist.models.promptmm.objectives import TeacherLosses
from diffmm_dist.models.promptmm.phases import TeachPhase, num_batches
from diffmm_dist.models.promptmm.student import Student, StudentSettings, TwiceAdamW
from diffmm_dist.models.promptmm.targets import FrozenTeacher, PromptedTeacher
from diffmm_dist.models.promptmm.teacher import PromptTeacher, TeacherSettings
from diffmm_dist.models.promptmm.tokens import principal_components
from diffmm_dist.models.recipe import TeacherTables
from diffmm_dist.parallel.random import RandomStream
from diffmm_dist.parallel.world import World
from diffmm_dist.runs.config import config_from_tree, load_config
from tests.support.builders import random_pairs, random_rows, training_data

ALONE = World.single()
PAIRS = random_pairs(12, 9, share=0.3, empty_rows=[11], empty_columns=[8])
WIDTHS = {"visual": 6, "textual": 3}


def graph():
    return HeteroGraph({REAL: Relation.normalized(PAIRS, normalizer="row_root", self_loops=False)})


def teacher(readout="softmax", num_layers=2):
    data = training_data(PAIRS, WIDTHS)
    settings = TeacherSettings(num_layers, readout, 0.4, 0.1, 0.1, 2.0)
    built = PromptTeacher(data, graph(), seed=1, embedding_dim=4, settings=settings)
    built.prepare()
    return built, data


def student(dim=4, num_layers=1, kind="lightgcn", released=False):
    data = training_data(PAIRS, {})
    settings = StudentSettings(kind, num_layers, 0.5, 0.4, released)
    return Student(
        data.shard, graph(), seed=1, embedding_dim=dim, modal_dim=4, modalities=tuple(WIDTHS), settings=settings
    )


def scores(rows):
    return rows[0] @ rows[1].T


def components(features, count):
    return principal_components(features, num_components=count, num_items=len(features), world=ALONE)


def test_tokens_are_the_principal_components_whatever_the_blocks(monkeypatch):
    features = random_rows(50, 7, 3) * torch.arange(1, 8) + 5
    whole = components(features, 4)
    centred = features - features.mean(dim=0)
    _, values, axes = torch.linalg.svd(centred, full_matrices=False)
    torch.testing.assert_close(whole.abs(), (centred @ axes[:4].T).abs(), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(whole.norm(dim=0), values[:4], rtol=1e-4, atol=1e-4)
    monkeypatch.setattr(host_rows, "_BLOCK_ELEMENTS", 21)
    torch.testing.assert_close(components(features, 4), whole, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(components(-features, 4).abs(), whole.abs(), rtol=1e-4, atol=1e-4)


def test_features_narrower_than_the_tokens_leave_zeros():
    found = components(random_rows(9, 2, 1), 4)
    assert not found[:, 2:].any()
    assert found[:, :2].any()
    assert not components(torch.ones(9, 3), 2).isnan().any()


def test_tokens_are_made_before_the_features_are_touched():
    features = random_rows(9, 3, 1).double()
    before = features.clone()
    components(features, 2)
    assert torch.equal(features, before)


def test_a_feature_prompt_equals_the_product_with_the_features():
    built, data = teacher()
    prompt = built.prompts()[1]
    for name, features in data.features.items():
        projection = built.projection(name)
        whole = prompt @ (prompt.T @ features)
        prompted = features + 2.0 * torch.nn.functional.normalize(whole, dim=1)
        torch.testing.assert_close(built.reduced(name, prompt), projection(prompted), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("width", [1, 2, 40])
def test_nearly_parallel_features_are_prompted_by_unit_vectors(width):
    """Their rows of Q are all multiples of one; squares of norms from a Gram matrix came out negative here."""
    data = training_data(PAIRS, {"visual": width})
    data.features["visual"] = 5 + random_rows(9, width, 3) * 1e-3
    built = PromptTeacher(
        data, graph(), seed=1, embedding_dim=32, settings=TeacherSettings(1, "mean", 0.0, 0.1, 0.1, 1.0)
    )
    built.prepare()
    weight = built.projection("visual").weight.detach()
    for seed in range(50):
        with torch.no_grad():
            for parameter in built.prompt:
                parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed)))
            prompt = built.prompts()[1]
            whole = prompt.double() @ (prompt.double().T @ data.features["visual"].double())
            expected = torch.nn.functional.normalize(whole, dim=1) @ weight.double().T
            # Of a row whose parts cancel, float32 has the prompt itself in a few digits alone.
            torch.testing.assert_close(built.prompted("visual", prompt).double(), expected, rtol=0.05, atol=0.05)


def test_a_prompt_of_zeros_prompts_nothing():
    built, _ = teacher()
    with torch.no_grad():
        for parameter in built.prompt:
            parameter.zero_()
    rows = built.prompted("visual", built.prompts()[1])
    assert not rows.any()
    rows.sum().backward()
    assert all(bool(torch.isfinite(parameter.grad).all()) for parameter in built.prompt if parameter.grad is not None)


@pytest.mark.parametrize("num_layers", [1, 3])
def test_readouts(num_layers):
    for readout in ("softmax", "mean"):
        built, _ = teacher(readout, num_layers)
        users, items = (rows.detach() for rows in built.layers(built.prompted_tables(built.prompts()))[-1])
        ones = torch.ones(len(items))
        assert torch.allclose(items.sum(dim=1), ones) == (readout == "softmax")
        assert (float(users[11].sum()) == pytest.approx(1)) == (readout == "softmax")  # without items: 1 / d everywhere


def test_a_held_teacher_gets_no_gradient_and_a_frozen_one_stays():
    built, _ = teacher()
    prompted, frozen = PromptedTeacher(built), FrozenTeacher(built)
    for targets in (prompted, frozen):
        targets.begin()
    views = prompted(RandomStream(0)), frozen(RandomStream(0))
    torch.testing.assert_close(views[0].final, views[1].final)
    views[0].final[0].sum().backward()
    assert all(parameter.grad is not None for parameter in built.prompt_user.parameters())
    assert built.user_embedding.grad is None
    with torch.no_grad():
        built.prompt_user.weight.add_(1)
    frozen.begin()
    assert torch.equal(frozen(RandomStream(0)).final[0], views[1].final[0])
    assert not torch.allclose(prompted(RandomStream(0)).final[0], views[1].final[0])


def test_the_narrow_form_is_the_best_of_its_rank():
    rows = random_rows(30, 6, 1), random_rows(20, 6, 2)
    for width in (1, 3, 5):
        found = scores(narrowed(rows, narrowing(rows, width=width, world=ALONE)))
        left, values, right = torch.linalg.svd(scores(rows))
        best = left[:, :width] * values[:width] @ right[:width]
        torch.testing.assert_close(found, best, rtol=1e-3, atol=1e-3)


def test_the_narrow_form_of_rows_without_full_rank_is_finite():
    rows = random_rows(30, 6, 1), random_rows(20, 6, 2)
    rows[0][:, 2:] = 0
    found = narrowed(rows, narrowing(rows, width=4, world=ALONE))
    torch.testing.assert_close(scores(found), scores(rows), rtol=1e-3, atol=1e-3)
    nothing = torch.zeros(5, 3), torch.zeros(4, 3)
    assert not scores(narrowed(nothing, narrowing(nothing, width=2, world=ALONE))).any()


@pytest.mark.parametrize("dim", [2, 4, 7])
def test_a_student_begins_as_its_teacher_in_any_width(dim):
    rows = random_rows(12, 4, 1), random_rows(9, 4, 2)
    small = student(dim, num_layers=0)
    small.begin_with(rows)
    users, items = small.embeddings()
    assert users.shape == (12, dim)
    kept = users[:, : min(dim, 4)] @ items[:, : min(dim, 4)].T
    best = scores(rows) if dim >= 4 else scores(narrowed(rows, narrowing(rows, width=dim, world=ALONE)))
    torch.testing.assert_close(kept, best, rtol=1e-3, atol=1e-4)
    assert dim <= 4 or bool(users[:, 4:].any())  # what is in columns of its own can learn
    assert item_map(rows, width=dim, world=ALONE).shape == (4, dim)


def test_a_table_with_two_names_is_stepped_twice():
    first, second = (torch.nn.Parameter(random_rows(3, 2, 1)) for _ in range(2))
    twin = torch.nn.Parameter(second.data)  # shares its memory
    ours = TwiceAdamW([first], lr=0.1, weight_decay=0.1)
    theirs = AdamW([second, twin], lr=0.1, weight_decay=0.1, foreach=False)
    for step in range(3):
        gradient = random_rows(3, 2, step + 5)
        first.grad, second.grad, twin.grad = gradient, gradient, gradient
        ours.step()
        theirs.step()
        torch.testing.assert_close(first, second)


def test_released_students_meet_the_rows_of_the_wrong_nodes():
    users, items = student(released=True)._misplaced((torch.arange(12.0)[:, None], 100 + torch.arange(9.0)[:, None]))
    stack = [*range(12), *(100 + item for item in range(9))]
    assert users[:, 0].tolist() == [stack[9 + user] for user in range(12)]
    assert items[:, 0].tolist() == [stack[item] for item in range(9)]


def test_the_prompt_bias_of_items_is_not_moved_by_its_own_ranking():
    """It cancels in BPR; with the published weight of 1e10 its gradient would be rounding noise."""
    built, data = teacher()
    phase = TeachPhase(built, data, TeacherLosses(1e10, 0.0, 0.0, 0.0), Optimization(6, 1e-3, 0.0))
    for index in range(phase.begin(PhaseContext(ALONE, 1, 0))):
        phase.step(index)
    assert float(built.prompt_item.bias.grad.abs().max()) < 1
    assert float(built.prompt_item.weight.grad.abs().max()) > 1e3


def test_an_epoch_has_a_batch_more_than_fit():
    assert [num_batches(*sizes) for sizes in ((59_541, 1024), (10, 5), (3, 5))] == [59, 3, 1]


def test_lists_of_a_teacher_hold_what_it_ranks_first():
    data = training_data(PAIRS, {})
    rows = random_rows(12, 4, 1), random_rows(9, 4, 2)
    draw = FromTeacher(data, 50, topk=3, teacher=lambda: rows)
    draw.begin()
    drawn = draw(torch.arange(12), torch.arange(12), RandomStream.of(1))
    free = scores(rows).masked_fill(PAIRS.dense() > 0, -torch.inf)
    first = free.topk(3, dim=1).indices
    for user in range(12):
        assert set(drawn[user].tolist()) == set(first[user].tolist())


def test_another_teacher_than_it_began_with_is_refused():
    model = PromptMM(None, student(), graph(), seed=1)
    tables = [TeacherTables(torch.zeros(1), torch.zeros(1), name, f"lightgcn of runs/{name}") for name in ("a", "b")]
    model.remember(tables[0])
    model.check_remembered(tables[0])
    with pytest.raises(UserError, match=r"model.teacher, lightgcn of runs/b, is not what it was when this run began"):
        model.check_remembered(tables[1])


WRONG = [
    ({"mode": "release", "teacher": "runs/a"}, "model.mode=release needs a teacher that this run trains"),
    ({"teacher": "runs/a", "student": {"kind": "mm_light"}}, "model.student.kind=mm_light needs a teacher that"),
    ({"mode": "release", "student": {"embedding_dim": 8}}, "has a student that begins as its teacher"),
    ({"mode": "release", "student": {"initial": "random"}}, "has a student that begins as its teacher"),
    ({"student": {"embedding_dim": 8}}, "model.student.embedding_dim=8 cannot be compared with"),
    (
        {"student": {"embedding_dim": 8}, "distillation": {"views": "final"}},
        "model.student.embedding_dim=8 cannot be compared with",
    ),
    ({"distillation": {"candidates": "teacher"}}, "model.distillation.candidates=teacher ranks once"),
    (
        {"mode": "release", "distillation": {"temperature": 0.5}},
        "release has no use for model.distillation.temperature",
    ),
    ({"distillation": {"embedding_power": 0.5}}, "'model.distillation.embedding_power' is 0.5"),
    ({"distillation": {"teacher_temperature": 1e-40}}, "'model.distillation.teacher_temperature' is 1e-40"),
]
RIGHT = [
    {"student": {"embedding_dim": 8}, "distillation": {"embedding_weight": 0}},
    {"student": {"embedding_dim": 8}, "distillation": {"views": "final", "train_prompt": False}},
    {"teacher": "runs/a", "student": {"embedding_dim": 8}, "distillation": {"candidates": "teacher"}},
]


def config(model):
    tree = {"data": {"path": "datasets/a"}, "run": {"path": "runs/b"}, "model": {"name": "promptmm", **model}}
    return config_from_tree(tree, source="test")


@pytest.mark.parametrize(("model", "sentence"), WRONG)
def test_settings_that_do_not_go_together_are_refused(model, sentence):
    with pytest.raises(UserError, match=sentence):
        config(model)


@pytest.mark.parametrize("model", RIGHT)
def test_settings_that_do_are_not(model):
    assert config(model).model.name == "promptmm"


def test_the_configurations_can_be_read():
    for name in ("tiktok", "student"):
        assert load_config(f"configs/promptmm/{name}.yaml").model.name == "promptmm"
