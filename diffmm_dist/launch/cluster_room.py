"""Whether a cluster holds a run, could grow to hold it, or never can: arithmetic on node shapes, without Ray.

All workers of a run are alike, so a node holds as many as its scarcest resource allows, and a cluster the sum over its
nodes. Sums of CPUs would say too much: three workers of 4 CPUs do not fit on six nodes of 2.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

_TIE = 1e-6  # Ray counts in ten-thousandths


@dataclass(frozen=True)
class Shape:
    """CPUs and GPUs, which may be fractions."""

    cpus: float = 0
    gpus: float = 0

    @classmethod
    def of(cls, resources: Mapping[str, float]) -> "Shape":
        """Take them from Ray's names of resources."""
        return cls(float(resources.get("CPU", 0)), float(resources.get("GPU", 0)))

    def __str__(self) -> str:
        cpus = _count(self.cpus, "CPU")
        return f"{cpus} and {_count(self.gpus, 'GPU')}" if self.gpus else cpus


@dataclass(frozen=True)
class Node:
    """A node that is there: what it has, what nobody uses of it, and its type's name if an autoscaler made it."""

    total: Shape
    free: Shape
    type_name: str = ""


@dataclass(frozen=True)
class NodeType:
    """What an autoscaler can start: at most ``most`` nodes of a shape, which None leaves open."""

    name: str
    shape: Shape | None
    most: float

    def __str__(self) -> str:
        shape = "a size that is not known" if self.shape is None else str(self.shape)
        return f"{_up_to(self.most)} {self.name} of {shape}"


@dataclass(frozen=True)
class Limits:
    """What an autoscaler can start: some types, and so many nodes in all. Without types the cluster cannot grow."""

    types: tuple[NodeType, ...] = ()
    most: float = 0

    @classmethod
    def of(cls, tree: Mapping[str, Any]) -> "Limits":
        """Read them from an autoscaler's configuration, the same tree for every provider."""
        most = _limit(tree.get("max_workers"), math.inf)
        types = []
        for name, entry in tree["available_node_types"].items():
            resources = entry.get("resources") or {}
            default = 0 if name == tree.get("head_node_type") else most
            # Where a provider does not say how large its machines are, Ray finds out when one is there.
            shape = Shape.of(resources) if {"CPU", "GPU"} & set(resources) else None
            types.append(NodeType(name, shape, _limit(entry.get("max_workers"), default)))
        return cls(tuple(entry for entry in types if entry.most > 0), most)

    def __str__(self) -> str:
        total = sum(entry.most for entry in self.types)
        together = f", {_up_to(self.most)} together" if self.most < total else ""
        return ", ".join(map(str, self.types)) + together


@dataclass(frozen=True)
class Unknown:
    """Nobody could say whether the cluster can grow, and why not."""

    reason: str


Growth = Limits | Unknown


@dataclass(frozen=True)
class Request:
    """What a run asks of the cluster.

    Attributes:
        num_workers: W, or its bounds.
        cpus: CPUs of each worker.
        use_gpu: whether each worker gets a GPU.
    """

    num_workers: int | tuple[int, int]
    cpus: int
    use_gpu: bool

    @property
    def fewest(self) -> int:
        """The workers without which the run does not start."""
        return self.num_workers if isinstance(self.num_workers, int) else self.num_workers[0]

    @property
    def resources(self) -> dict[str, float]:
        """What one worker takes, in Ray's names."""
        return {"CPU": self.cpus, **({"GPU": 1} if self.use_gpu else {})}

    def on(self, shape: Shape) -> int:
        """Return how many workers a node of this shape holds."""
        rooms = [shape.cpus / self.cpus, *([shape.gpus] if self.use_gpu else [])]
        return max(0, math.floor(min(rooms) + _TIE))

    def on_all(self, shapes: Iterable[Shape]) -> int:
        """Return how many workers these nodes hold."""
        return sum(map(self.on, shapes))

    def __str__(self) -> str:
        each = str(Shape(self.cpus, int(self.use_gpu)))
        return f"{self.fewest} workers of {each} each" if self.fewest > 1 else f"1 worker of {each}"


def request_for(
    num_workers: int | tuple[int, int],
    *,
    cpus: int,
    device: Literal["auto", "cpu", "cuda"],
    nodes: Sequence[Node],
    growth: Growth,
) -> Request:
    """Return what a run asks of a cluster.

    ``auto`` takes GPUs where a node that is there has one. Where none has, it does not make an autoscaler start
    machines with GPUs, unless only with them the cluster can hold the run.
    """
    plain, with_gpus = (Request(num_workers, cpus, use_gpu) for use_gpu in (False, True))
    if device != "auto":
        return with_gpus if device == "cuda" else plain
    if any(node.total.gpus > 0 for node in nodes):
        return with_gpus
    if isinstance(growth, Limits) and any(entry.shape and entry.shape.gpus for entry in growth.types):
        others = Limits(tuple(entry for entry in growth.types if not (entry.shape and entry.shape.gpus)), growth.most)
        if largest(plain, nodes, others) < plain.fewest <= largest(with_gpus, nodes, growth):
            return with_gpus
    return plain


def held(request: Request, nodes: Sequence[Node]) -> int:
    """Return how many workers the nodes that are there hold, whoever uses them now."""
    return request.on_all(node.total for node in nodes)


def free(request: Request, nodes: Sequence[Node]) -> int:
    """Return for how many workers there is room now."""
    return request.on_all(node.free for node in nodes)


def largest(request: Request, nodes: Sequence[Node], limits: Limits) -> float:
    """Return how many workers the cluster could ever hold; infinite where that is not limited or not known.

    Nodes that the autoscaler made may give way to others of its types, so only the rest counts as it stands.
    """
    growing = {entry.name for entry in limits.types}
    total: float = request.on_all(node.total for node in nodes if node.type_name not in growing)
    seen = {node.type_name: node.total for node in nodes}
    rooms = []
    for entry in limits.types:
        shape = entry.shape or seen.get(entry.name)
        rooms.append((math.inf if shape is None else request.on(shape), entry.most))
    left = limits.most
    for room, most in sorted(rooms, reverse=True):
        if room and left:
            total += room * min(most, left)
            left -= min(most, left)
    return max(total, held(request, nodes))


def can_never(request: Request, nodes: Sequence[Node], growth: Growth) -> bool:
    """Return whether the cluster can never hold the fewest workers."""
    return isinstance(growth, Limits) and largest(request, nodes, growth) < request.fewest


def refusal(request: Request, nodes: Sequence[Node], growth: Growth) -> str:
    """Return the sentence for a run that the cluster cannot hold, with both numbers and what to do."""
    text = f"{_needs(request)}, and the cluster has room for {held(request, nodes)} ({describe(nodes)})"
    remedy = "or add nodes"
    if isinstance(growth, Unknown):
        text += f", and whether it can grow is not known: {growth.reason}"
    elif growth.types:
        text += f" and can grow to {largest(request, nodes, growth):g} ({growth})"
        remedy = "or let the autoscaler start more or larger nodes"
    return f"{text}; lower it or cluster.threads_per_worker, {remedy}"


def gave_up(request: Request, nodes: Sequence[Node], coming: Mapping[str, int], seconds: float) -> str:
    """Return the sentence for a cluster that has not grown in time."""
    return (
        f"{_needs(request)}, and after {seconds:g} s the cluster has room for {held(request, nodes)} "
        f"({describe(nodes)}){_arriving(coming)}; nothing was trained: run the same command again, raise "
        "cluster.wait_for_nodes_s, or see `ray status` for why no node came"
    )


def waiting(request: Request, nodes: Sequence[Node], coming: Mapping[str, int]) -> str:
    """Return what a run waits for and what is there, without what changes by itself."""
    now, at_most = free(request, nodes), held(request, nodes)
    text = f"waiting for room for {request}: there is room for {now} ({describe(nodes)})"
    if now < min(at_most, request.fewest):
        text += f", for {at_most} once others free what they use"
    return text + _arriving(coming)


def _needs(request: Request) -> str:
    return f"cluster.num_workers={request.fewest} needs room for {request}"


def _arriving(coming: Mapping[str, int]) -> str:
    arriving = ", ".join(f"{count} {name}" for name, count in sorted(coming.items()) if count)
    return f"; being started: {arriving}" if arriving else ""


def describe(nodes: Sequence[Node]) -> str:
    """Return the nodes' number and shapes."""
    shapes = Counter(node.total for node in nodes)
    parts = [f"{_count(count, 'node')} of {shape}" for shape, count in shapes.items()]
    return ", ".join(parts) or "no nodes"


def _limit(value: Any, default: float) -> float:
    return default if value is None else float(value)


def _up_to(number: float) -> str:
    return "any number of" if math.isinf(number) else f"at most {number:g}"


def _count(number: float, noun: str) -> str:
    return f"{number:g} {noun}{'' if number == 1 else 's'}"
