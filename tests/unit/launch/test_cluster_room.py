"""What fits a cluster, what it can grow to, and what is said of it."""

import math

import pytest

from diffmm_dist.launch.cluster_room import (
    Limits,
    Node,
    NodeType,
    Request,
    Shape,
    Unknown,
    can_never,
    free,
    gave_up,
    held,
    largest,
    refusal,
    request_for,
    waiting,
)

NONE = Limits()


def nodes(*shapes, kind=""):
    """Nodes of (CPUs, GPUs), all free."""
    return [Node(Shape(*shape), Shape(*shape), kind) for shape in shapes]


def limits(*types, most=math.inf):
    """Node types of (name, CPUs, GPUs, how many)."""
    return Limits(tuple(NodeType(name, Shape(cpus, gpus), count) for name, cpus, gpus, count in types), most)


@pytest.mark.parametrize(
    ("there", "request_", "expected"),
    [
        ([(2,)], Request(2, 1, False), 2),
        ([(8,)], Request(2, 4, False), 2),
        ([(2,)] * 6, Request(3, 4, False), 0),  # 12 CPUs in all, and none holds a worker
        ([(3,), (5,)], Request(2, 4, False), 1),
        ([(0,), (4, 1), (4, 1)], Request(2, 1, True), 2),
        ([(64, 1)], Request(2, 1, True), 1),
        ([(1, 8)], Request(8, 1, True), 1),
        ([(4, 0.5)], Request(1, 1, True), 0),
        ([(0.9999999,)], Request(1, 1, False), 1),
        ([], Request(1, 1, False), 0),
    ],
)  # fmt: skip
def test_a_cluster_holds_what_its_nodes_hold_one_by_one(there, request_, expected):
    assert held(request_, nodes(*there)) == expected
    assert can_never(request_, nodes(*there), NONE) == (expected < request_.fewest)


def test_what_others_use_is_not_free_but_is_held():
    there = [Node(Shape(4), Shape(1)), Node(Shape(4), Shape(4))]
    request = Request(2, 4, False)
    assert (free(request, there), held(request, there)) == (1, 2)
    assert not can_never(request, there, NONE)


def test_a_pair_of_bounds_waits_for_the_fewest_only():
    assert not can_never(Request((2, 9), 1, False), nodes((2,)), NONE)
    assert can_never(Request((3, 9), 1, False), nodes((2,)), NONE)


@pytest.mark.parametrize(
    ("there", "growth", "request_", "expected"),
    [
        (nodes((1,)), limits(("small", 1, 0, 3)), Request(4, 1, False), 4),
        (nodes((1,)), limits(("small", 1, 0, 3), most=2), Request(4, 1, False), 3),
        # The nodes of that type that are there are among the most that there can be.
        (nodes((1,)) + nodes((1,), (1,), kind="small"), limits(("small", 1, 0, 3)), Request(4, 1, False), 4),
        # Those of another type may go again.
        (nodes((0,)) + nodes((1,), (1,), kind="small"),
         limits(("small", 1, 0, 2), ("big", 8, 0, 2), most=2), Request(4, 8, False), 2),
        (nodes((0,)), limits(("small", 2, 0, 9), ("big", 8, 0, 1), most=3), Request(3, 2, False), 6),
        (nodes((0,)), limits(("cpu", 8, 0, 9), ("gpu", 8, 2, 2)), Request(4, 4, True), 4),
        (nodes((0,)), limits(("cpu", 8, 0, 9)), Request(1, 4, True), 0),
        (nodes((2,)), limits(("small", 2, 0, 100)), Request(3, 4, False), 0),
        (nodes((0,)), limits(("cloud", 8, 0, math.inf)), Request(4096, 4, False), math.inf),
        # More than the autoscaler would start may be there: nodes that somebody has added, or limits just lowered.
        (nodes((4,), (4,), kind="small"), limits(("small", 4, 0, 1)), Request(2, 4, False), 2),
    ],
)  # fmt: skip
def test_a_cluster_grows_within_the_limits_of_its_types_and_in_all(there, growth, request_, expected):
    assert largest(request_, there, growth) == expected
    assert can_never(request_, there, growth) == (expected < request_.fewest)


def test_a_type_of_unknown_size_is_taken_from_a_node_of_it_or_never_refused():
    growth = Limits((NodeType("machine", None, 2),), 2)
    assert not can_never(Request(2, 64, False), nodes((0,)), growth)
    assert largest(Request(2, 4, False), nodes((0,)) + nodes((8,), kind="machine"), growth) == 4
    assert can_never(Request(2, 64, False), nodes((8,), kind="machine"), growth)


def test_what_nobody_knows_is_not_refused():
    assert not can_never(Request(64, 4, True), nodes((1,)), Unknown("nobody answers"))


def test_the_autoscalers_configuration_is_read_in_the_form_of_every_provider():
    growth = Limits.of({
        "max_workers": 5,
        "head_node_type": "head",
        "available_node_types": {
            "head": {"resources": {"CPU": 0}},
            "few": {"resources": {"CPU": 4, "GPU": 1, "memory": 1}, "max_workers": 2},
            "as many as in all": {"resources": {"CPU": 2}},
            "none": {"resources": {"CPU": 2}, "max_workers": 0},
            "found out later": {"resources": {}, "max_workers": 1},
        },
    })  # fmt: skip
    assert growth == Limits(
        (NodeType("few", Shape(4, 1), 2), NodeType("as many as in all", Shape(2), 5),
         NodeType("found out later", None, 1)), 5,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("device", "there", "growth", "expected"),
    [
        ("cuda", [(4,)], NONE, True),
        ("cpu", [(4, 4)], NONE, False),
        ("auto", [(4, 4)], NONE, True),
        ("auto", [(4,)], NONE, False),
        ("auto", [(4,)], limits(("gpu", 4, 1, 2)), False),  # it fits what is there
        ("auto", [(0,)], limits(("cpu", 4, 0, 2), ("gpu", 4, 1, 2)), False),  # machines without do
        ("auto", [(0,)], limits(("cpu", 1, 0, 1), ("gpu", 4, 1, 2)), True),
        ("auto", [(0,)], limits(("gpu", 4, 1, 2)), True),
        ("auto", [(0,)], limits(("gpu", 4, 1, 1)), False),  # one GPU for two, but CPUs for both
        ("auto", [(0,)], Unknown("nobody answers"), False),
    ],
)  # fmt: skip
def test_auto_has_gpus_added_only_where_nothing_else_would_do(device, there, growth, expected):
    assert request_for(2, cpus=1, device=device, nodes=nodes(*there), growth=growth).use_gpu is expected


def test_a_refusal_has_both_numbers_the_shapes_and_the_limits():
    request, there = Request(3, 4, False), nodes(*[(2,)] * 6)
    assert refusal(request, there, NONE) == (
        "cluster.num_workers=3 needs room for 3 workers of 4 CPUs each, and the cluster has room for 0 (6 nodes of 2 "
        "CPUs); lower it or cluster.threads_per_worker, or add nodes"
    )
    growth = limits(("small", 2, 0, 8), ("gpu", 4, 1, 2), most=8)
    assert refusal(request, there, growth) == (
        "cluster.num_workers=3 needs room for 3 workers of 4 CPUs each, and the cluster has room for 0 (6 nodes of 2 "
        "CPUs) and can grow to 2 (at most 8 small of 2 CPUs, at most 2 gpu of 4 CPUs and 1 GPU, at most 8 together); "
        "lower it or cluster.threads_per_worker, or let the autoscaler start more or larger nodes"
    )
    assert "and whether it can grow is not known: nobody answers; lower it" in refusal(
        request, there, Unknown("nobody answers")
    )


def test_a_wait_says_what_for_what_is_there_and_what_comes():
    there = [Node(Shape(1), Shape(0)), Node(Shape(1), Shape(1))]
    request = Request((2, 4), 1, False)
    assert waiting(request, there, {}) == (
        "waiting for room for 2 workers of 1 CPU each: there is room for 1 (2 nodes of 1 CPU), for 2 once others free "
        "what they use"
    )
    text = waiting(Request(3, 1, False), there[1:], {"small": 2, "big": 1, "none": 0})
    assert text.endswith("there is room for 1 (1 node of 1 CPU); being started: 1 big, 2 small")
    text = gave_up(Request(3, 1, False), there, {"small": 2}, 600)
    assert text.startswith("cluster.num_workers=3 needs room for 3 workers of 1 CPU each, and after 600 s the cluster ")
    assert "has room for 2 (2 nodes of 1 CPU); being started: 2 small; nothing was trained" in text
