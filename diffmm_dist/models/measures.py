"""What benchmarks ask of a model, so that they work for every one."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from diffmm_dist.models.common.work import Cuts, Traffic, Work

if TYPE_CHECKING:
    from diffmm_dist.models.recipe import Needs

Settings = TypeVar("Settings")


@dataclass(frozen=True)
class Measures(Generic[Settings]):
    """What benchmarks ask of a model; formulas are in its folder's ``costs``.

    Attributes:
        work: says what one worker does in an epoch, by phase; None of a model without phases.
        traffic: says what each worker sends in a step of those phases that send most.
        settle: brings a model that was just built to what a phase finds in the middle of a run, in place.
        sizes: sizes of its own that a benchmark may double, by name: the setting, by its key below ``model``, and the
            value of it that has a size.
        losses: beginnings of the tags that tables of losses show.
    """

    work: "Callable[[Settings, Needs], Mapping[str, Work]] | None" = None
    traffic: Callable[[Settings, Cuts], Sequence[Traffic]] = lambda _, cuts: [{}] * len(cuts.shards)
    settle: Callable[[Any], None] = lambda _: None
    sizes: Mapping[str, tuple[str, Callable[[int], Any]]] = field(default_factory=dict)
    losses: tuple[str, ...] = ("recommend/bpr",)
