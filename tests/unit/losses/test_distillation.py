"""Distillation: values and gradients equal the equations; what the parts add up to; the ends of float32."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from diffmm_dist.losses import distillation, equations
from tests.support.builders import random_rows

BATCH, CANDIDATES = 5, 4


def lists(scale=1.0):
    return [(random_rows(BATCH, CANDIDATES, seed) * scale).requires_grad_() for seed in (1, 2)]


def compare(ours, plain, make):
    """Values and the gradients of student and teacher."""
    results = []
    for function in (ours, plain):
        student, teacher = make()
        loss = function(student, teacher)
        loss.backward()
        results.append((loss.detach(), student.grad, teacher.grad))
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected)


def test_pairs_equal_their_equation():
    compare(
        lambda s, t: distillation.pair_divergence(s, t, divisor=BATCH),
        lambda s, t: equations.bernoulli_divergence(t, s),
        lambda: [(random_rows(BATCH, 1, seed)[:, 0] * 3).requires_grad_() for seed in (1, 2)],
    )


def test_reweighted_lists_are_the_divergence_of_the_whole_lists():
    compare(
        lambda s, t: distillation.list_loss(s, t, divisor=BATCH),
        lambda s, t: equations.divergence_of_lists(t, s),
        lists,
    )


def test_a_temperature_divides_both_lists():
    compare(
        lambda s, t: distillation.list_loss(s, t, divisor=BATCH, temperature=0.25),
        lambda s, t: equations.divergence_of_lists(4 * t, 4 * s),
        lists,
    )


@pytest.mark.parametrize("power", [1.0, 2.0, 2.5])
def test_embeddings_equal_their_equation(power):
    compare(
        lambda s, t: distillation.embedding_error(s, t, power=power, divisor=BATCH),
        lambda s, t: equations.scaled_cosine_error(t, s, power=power),
        lists,
    )


def test_free_weights_count_the_parts_apart():
    student, teacher = (scores.detach() for scores in lists())
    found = distillation.list_divergence(student, teacher)
    loss = distillation.list_loss(student, teacher, divisor=3, target_weight=2.0, others_weight=5.0, reweighted=False)
    assert float(loss) == pytest.approx(float((2 * found.target_B + 5 * found.others_B).sum() / 3))


@given(st.integers(0, 1000), st.floats(0.1, 20))
def test_divergences_are_at_least_0_and_0_of_equals(seed, scale):
    student, teacher = random_rows(6, 5, seed) * scale, random_rows(6, 5, seed + 1) * scale
    for part in distillation.list_divergence(student, teacher):
        assert float(part.min()) >= -1e-5
    assert float(distillation.pair_divergence(student[:, 0], teacher[:, 0], divisor=1)) >= -1e-5
    assert float(distillation.list_loss(teacher, teacher, divisor=1)) == pytest.approx(0, abs=1e-5)
    assert float(distillation.pair_divergence(teacher[:, 0], teacher[:, 0], divisor=1)) == pytest.approx(0, abs=1e-6)


def test_a_certain_teacher_leaves_everything_finite():
    """Unnormalised features have scores of hundreds, where a softmax is 1 and 0."""
    student, teacher = lists(scale=400.0)
    losses = [
        distillation.list_loss(student, teacher, divisor=BATCH),
        distillation.pair_divergence(student[:, 0], teacher[:, 0], divisor=BATCH),
        distillation.released_divergence(
            distillation.released_list(student), distillation.released_list(teacher.detach()), divisor=BATCH
        ),
    ]
    torch.stack(losses).sum().backward()
    for values in (*losses, student.grad, teacher.grad):
        assert bool(torch.isfinite(values).all())


def test_rows_of_zeros_are_as_far_as_can_be_without_being_opposite():
    zeros, rows = torch.zeros(2, 3), random_rows(2, 3, 1)
    assert float(distillation.embedding_error(rows, zeros, power=2.0, divisor=2)) == 1
    assert float(distillation.embedding_error(rows, rows, power=2.0, divisor=2)) == pytest.approx(0, abs=1e-10)
    assert float(distillation.embedding_error(rows, -rows, power=2.0, divisor=2)) == pytest.approx(4)


def test_the_released_pair_pushes_the_margin_down():
    """It takes losses for log-probabilities, so a certain teacher lowers the student's margin (PM4)."""
    margin, teacher = torch.zeros(1, requires_grad=True), torch.tensor([-2.0])
    loss = distillation.released_divergence(
        distillation.released_pair(margin), distillation.released_pair(teacher), divisor=1
    )
    loss.backward()
    assert float(margin.grad) > 0
    other = torch.zeros(1, requires_grad=True)
    distillation.pair_divergence(other, -teacher, divisor=1).backward()
    assert float(other.grad) < 0


def test_in_float64_too_a_saturated_list_has_no_negative_loss():
    scores = torch.tensor([[900.0, 0.0]], dtype=torch.float64)
    assert float(distillation.released_list(scores).min()) >= 0
