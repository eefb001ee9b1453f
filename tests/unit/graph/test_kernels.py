import sys

import pytest

from diffmm_dist.errors import UserError
from diffmm_dist.graph.kernels import MARGIN, choose_kernel, fastest
from diffmm_dist.graph.relation import Relation
from diffmm_dist.parallel.world import World
from tests.support.builders import random_pairs
from tests.support.optional import dgl_or_skip


def choice(csr, dgl):
    """The choice where the rounds of each kernel take these milliseconds, the last of them for ever."""
    milliseconds = {"csr": list(csr), "dgl": list(dgl)}

    def seconds_of(kernel):
        left = milliseconds[kernel]
        return (left.pop(0) if len(left) > 1 else left[0]) / 1e3

    return fastest(seconds_of, World.single())


def test_an_undisturbed_default_is_kept():
    chosen = choice([0.4], [1.2])
    assert chosen.kernel == "csr"
    assert chosen.reason.startswith("the default, for which dgl is not 1.25 times as fast: csr 0.40 ms, dgl 1.20 ms, ")
    assert "forward and backward on this graph, the least of " in chosen.reason


@pytest.mark.parametrize("disturbed", [1, 2, 5, 9])
def test_disturbed_first_rounds_decide_nothing(disturbed):
    """A neighbour that keeps the processor for a while makes every round of that while long, and one kernel's alone."""
    assert choice([43.0] * disturbed + [0.4], [1.3, 1.2]).kernel == "csr"
    assert choice([4.0], [50.0] * disturbed + [1.0]).kernel == "dgl"


def test_a_single_undisturbed_round_of_each_is_enough_to_keep_the_default():
    assert choice([43.0, 0.4, 43.0, 0.41, 43.0], [1.3]).kernel == "csr"


def test_a_kernel_whose_rounds_never_agree_is_no_reason_to_leave_the_default():
    """All rounds of the default are disturbed, each in another way: nothing tells how long it takes."""
    chosen = choice([2000.0 / 1.3**n for n in range(20)], [1.2])
    assert chosen.kernel == "csr"
    assert "too busy" in chosen.reason


@pytest.mark.parametrize(("ratio", "kernel"), [(0.9, "csr"), (1.0, "csr"), (1.2, "csr"), (1.3, "dgl"), (30, "dgl")])
def test_a_near_tie_keeps_the_default_and_a_clear_winner_replaces_it(ratio, kernel):
    chosen = choice([ratio], [1.0])
    assert chosen.kernel == kernel
    assert (kernel == "dgl") == (ratio > MARGIN)
    if kernel == "dgl":
        assert chosen.reason.startswith("more than 1.25 times as fast as the default: csr ")


def test_rounds_of_a_small_graph_outlast_a_moment_and_those_of_a_large_one_are_few():
    calls = []

    def seconds_of(kernel, seconds):
        calls.append(kernel)
        return seconds

    fastest(lambda kernel: seconds_of(kernel, 0.001), World.single())
    assert sum([0.001] * len(calls)) >= 0.5
    assert calls[:4] == ["csr", "dgl", "csr", "dgl"]
    calls.clear()
    fastest(lambda kernel: seconds_of(kernel, 20.0), World.single())
    assert len(calls) == 2 * 3


def test_what_is_asked_for_is_taken():
    relation = Relation.normalized(random_pairs(20, 10))
    assert choose_kernel("csr", relation, width=4, world=World.single()).kernel == "csr"
    dgl_or_skip()
    assert choose_kernel("dgl", relation, width=4, world=World.single()).kernel == "dgl"
    chosen = choose_kernel("auto", relation, width=4, world=World.single())
    assert chosen.kernel in ("csr", "dgl")
    assert "csr" in chosen.reason
    assert "dgl" in chosen.reason


def test_without_dgl_csr_is_chosen_and_says_why(monkeypatch):
    monkeypatch.setitem(sys.modules, "dgl", None)
    relation = Relation.normalized(random_pairs(20, 10))
    chosen = choose_kernel("auto", relation, width=4, world=World.single())
    assert chosen.kernel == "csr"
    assert "dgl==2.1.0" in chosen.reason
    with pytest.raises(UserError, match=r"graph\.kernel=csr"):
        choose_kernel("dgl", relation, width=4, world=World.single())
