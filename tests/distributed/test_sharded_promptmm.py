"""PromptMM on shards: tokens, both networks and every term equal the golden numbers and what one worker finds."""

from itertools import cycle, product

import pytest
import torch

from diffmm_dist.models.promptmm.candidates import FromTeacher, random_negatives, released_negatives
from diffmm_dist.models.promptmm.narrow import narrowed, narrowing
from diffmm_dist.models.promptmm.objectives import student_losses, teacher_losses
from diffmm_dist.models.promptmm.targets import PromptedTeacher
from diffmm_dist.models.promptmm.tokens import principal_components
from diffmm_dist.parallel.collectives import all_reduce_sum
from diffmm_dist.parallel.random import RandomStream
from diffmm_dist.parallel.replicas import sum_gradients
from diffmm_dist.parallel.world import World
from tests.support.builders import random_rows
from tests.support.golden_promptmm import (
    FILES,
    Golden,
    batch_of,
    build,
    masks_of,
    optimization_of,
    rows_of,
    student_losses_of,
    student_parameters,
    teacher_losses_of,
    teacher_parameters,
)
from tests.support.optional import dgl_or_skip
from tests.support.workers import SIZES, cuts, on_workers, shard_with

SIDES = ("user", "item")
KERNELS = ("csr", "dgl")


def goldens():
    return [Golden(path, torch.float32) for path in FILES]


def shards(world, golden):
    """Even ranges, and uneven ones with a worker that has no item and with rows in another order."""
    num_users, num_items = golden.num_nodes
    generator = torch.Generator().manual_seed(5)
    item_ids = torch.randperm(num_items, generator=generator)
    last = world.size - 1 if world.size > 1 else None
    return [
        shard_with(world, cuts(num_users, world.size), cuts(num_items, world.size)),
        shard_with(world, cuts(num_users, world.size), cuts(num_items, world.size, last), item_ids=item_ids),
    ]


def check_sides(golden, name, rows, shard):
    for side, values in zip(SIDES, rows, strict=True):
        golden.check(name.format(side=side), values, own=rows_of(f"_{side}", shard))


def cases(world):
    """Every file on every kind of shard."""
    return [(golden, shard) for golden in goldens() for shard in shards(world, golden)]


def check_tokens(world):
    """Principal components of own items."""
    for golden, shard in cases(world):
        for name in golden.modalities:
            features = golden[f"feat_{name}"]
            sizes = {"num_components": golden["embedding_dim"], "num_items": shard.num_items}
            expected = principal_components(features, world=World.single(), **sizes)
            found = principal_components(features[shard.own_item_ids], world=world, **sizes)
            torch.testing.assert_close(found, expected[shard.own_item_ids], rtol=1e-4, atol=1e-5)


def check_narrowing(world):
    """What the student's width makes of a teacher's embeddings."""
    for golden, shard in cases(world):
        users, items = (random_rows(count, 9, seed=count) for count in golden.num_nodes)
        own = users[shard.user_ids], items[shard.own_item_ids]
        expected = narrowed((users, items), narrowing((users, items), width=4, world=World.single()))
        found = narrowed(own, narrowing(own, width=4, world=world))
        scores, wanted = found[0] @ expected[1].T, (expected[0] @ expected[1].T)[shard.user_ids]
        torch.testing.assert_close(scores, wanted, rtol=1e-3, atol=1e-3)


def check_teacher_step(world):
    """Every table, loss and gradient of the first step, for both kernels."""
    for (golden, shard), kernel in zip(cases(world), cycle(KERNELS)):
        teacher = build(golden, shard=shard, kernel=kernel)[0].teacher
        golden.check("token_user", teacher.user_tokens, own=shard.user_ids.numpy())
        masks = masks_of(golden, "teacher0_teacher_mask", shard)
        with torch.no_grad():
            views = teacher(masks)
        check_sides(golden, "teacher0_final_{side}", views.final, shard)
        for name, rows in views.modal.items():
            check_sides(golden, f"teacher0_modal_{{side}}_{name}", rows, shard)
        batch = batch_of(golden, "teacher0", shard)
        terms = teacher_losses(teacher, batch, teacher_losses_of(golden), optimization_of(golden), dropout=masks)
        total = sum(terms.values())
        golden.check("teacher0_loss_total", all_reduce_sum(total.detach(), world))
        total.backward()
        sum_gradients(teacher.replicas, world, purpose="test")
        for name, parameter in teacher_parameters(teacher).items():
            golden.check(f"teacher0_grad_{name}", parameter.grad, own=rows_of(name, shard))


def check_released_step(world):
    """Every loss and gradient of the released student's first step."""
    for (golden, shard), kernel in zip(cases(world), cycle(KERNELS)):
        model = build(golden, shard=shard, kernel=kernel)[0]
        take_teachers(golden, model, "teacher1_after")
        with torch.no_grad():
            views = model.teacher(masks_of(golden, "student0_teacher_mask", shard))
        final = model.student(
            {name: items for name, (_, items) in views.modal.items()},
            masks_of(golden, "student0_student_mask", shard),
        )
        check_sides(golden, "student0_final_{side}", final, shard)
        batch = batch_of(golden, "student0", shard, lists=True)
        terms = student_losses(
            final, views, batch, student_losses_of(golden), l2_weight=golden["l2_weight"], released=True
        )
        total = sum(terms.values())
        golden.check("student0_loss_total", all_reduce_sum(total.detach(), world))
        total.backward()
        sum_gradients(model.student.replicas, world, purpose="test")
        twice = 2 if model.student.settings.kind == "lightgcn" else 1
        for name, parameter in student_parameters(model.student).items():
            golden.check(f"student0_grad_{name}", parameter.grad / twice, own=rows_of(name, shard))


@torch.no_grad()
def take_teachers(golden, model, prefix):
    for name, parameter in teacher_parameters(model.teacher).items():
        parameter.copy_(golden[f"{prefix}_{name}"][rows_of(name, model.student.shard)])


def check_paper_step(world):
    """Every term of the paper and its gradients, those of the prompt through the teacher too."""
    for (golden, shard), kernel in zip(cases(world), cycle(KERNELS)):
        model = build(golden, shard=shard, kernel=kernel, released=False)[0]
        take_teachers(golden, model, "teacher1_after")
        targets = PromptedTeacher(model.teacher)
        targets.begin()
        views = targets(RandomStream(0))
        leaves = [golden[f"student0_final_{side}"][rows_of(f"_{side}", shard)].requires_grad_() for side in SIDES]
        settings = student_losses_of(golden, pair_weight=1.0, list_weight=1.0, embedding_weight=1.0)
        batch = batch_of(golden, "student0", shard, lists=True)
        terms = student_losses(leaves, views, batch, settings, l2_weight=0.0, released=False)
        total = sum(term for name, term in terms.items() if name not in ("bpr", "l2"))
        golden.check("paper_total", all_reduce_sum(total.detach(), world))
        total.backward()
        check_sides(golden, "paper_dfinal_{side}", [leaf.grad for leaf in leaves], shard)
        sum_gradients(model.teacher.prompt, world, purpose="test")
        for name, parameter in teacher_parameters(model.teacher).items():
            if name.startswith("prompt_"):
                golden.check(f"paper_grad_{name}", parameter.grad)


def drawn(world, shard, golden, kind):
    """Items that are drawn for all users, each in the place of its id; of own users."""
    data = build(golden, shard=shard)[1]
    users, items = (random_rows(count, 5, seed=count) for count in golden.num_nodes)
    if kind is FromTeacher:
        rows = users[shard.user_ids], items[shard.own_item_ids]
        draw = FromTeacher(data, 4, topk=6, teacher=lambda: rows)
        draw.begin()
    else:
        draw = kind(data, 4)
    return data, draw(torch.arange(shard.user_ids.numel()), shard.user_ids, RandomStream.of(3))


def check_candidates(world):
    """Lists do not depend on the workers, and hold what they are meant to."""
    kinds = random_negatives, released_negatives, FromTeacher
    for (golden, shard), kind in product(cases(world), kinds):
        _, expected = drawn(World.single(), shards(World.single(), golden)[0], golden, kind)
        data, found = drawn(world, shard, golden, kind)
        assert torch.equal(found, expected[shard.user_ids])
        assert int(expected.max()) < golden["num_items"]
        rows = torch.arange(shard.user_ids.numel())[:, None].expand_as(found)
        assert kind is released_negatives or not data.interactions.contains(rows, found).any()


@pytest.mark.parametrize("size", SIZES)
def test_parts_equal_the_whole(size):
    dgl_or_skip()
    checks = check_tokens, check_narrowing, check_teacher_step, check_released_step, check_paper_step, check_candidates
    on_workers(size, *checks)
