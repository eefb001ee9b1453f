"""The forms of a run folder's JSON files."""

import re
from typing import Annotated, Any

from pydantic import AfterValidator, Field
from typing_extensions import NotRequired, TypedDict

from diffmm_dist.errors import UserError
from diffmm_dist.graph.hetero import Kernel
from diffmm_dist.records import RunId
from diffmm_dist.runs.protocol import Protocol

# What these files say is shown, compared and counted with, so it has a form and bounds like everything that is read.
Word = Annotated[str, Field(max_length=100)]
Amount = Annotated[float, Field(allow_inf_nan=False)]
Whole = Annotated[int, Field(ge=0, lt=2**63)]


# Of run folders. In those of format 1, which run.json did not say, a phase had one optimiser, whose name the tensors of
# checkpoints did not bear, and there was one stage.
FORMAT = 2


class Form(TypedDict):
    """What run.json says in every format.

    Attributes:
        format: of the run folder.
    """

    format: NotRequired[Whole]


class Identity(Form):
    """run.json: what the run was started with, and which writer has it.

    Attributes:
        run: a random id, which stands in every other file of the run.
        dataset: the fingerprint of the dataset.
        version: the program's version at the first start.
        kernel: the sparse kernel at the first start.
        writer: the number of the process that trains, or trained last; it stands in every checkpoint and record too.
        environment: what that process trains with: versions, processor, device, numbers of workers and threads.
    """

    run: RunId
    dataset: Word
    version: Word
    kernel: NotRequired[Kernel]
    writer: NotRequired[Whole]
    environment: NotRequired[dict[Word, Word]]


def _has_metrics(values: dict[str, float]) -> dict[str, float]:
    if not all(re.fullmatch("[a-z_]{1,20}@[0-9]{1,10}", name) for name in values):
        raise UserError("it holds a metric whose name is none")
    return values


Metrics = Annotated[dict[str, Amount], AfterValidator(_has_metrics)]


class StageResult(TypedDict):
    """A stage in result.json (docs/evaluation.md)."""

    name: Word
    epochs: Whole
    best_epoch: Whole
    valid: Metrics
    test: Metrics
    seconds_per_epoch: Amount


class Result(TypedDict):
    """result.json (docs/evaluation.md)."""

    run: RunId
    protocol: Protocol
    seed: Whole
    best_epoch: Whole
    epochs: Whole
    valid: Metrics
    test: Metrics
    seconds_per_epoch: Amount
    seconds_per_phase: dict[Word, Amount]
    peak_rss_gib: Amount
    notes: NotRequired[list[str]]
    stages: NotRequired[list[StageResult]]
    config: dict[str, dict[str, Any]]
