"""What the benchmarks write: the forms of their JSON files."""

from typing import Any

from typing_extensions import NotRequired, TypedDict


class TrainingBenchmark(TypedDict):
    """What `bench train` writes."""

    command: str
    machine: dict[str, Any]
    calibration: str
    config: dict[str, Any]
    runs: list[dict[str, Any]]
    summary: dict[str, Any]


class PropagationBenchmark(TypedDict):
    """What `bench propagate` writes; times in ms."""

    command: str
    machine: dict[str, Any]
    graph: dict[str, int]
    neighbor_sum_ms: dict[str, dict[str, float]]
    propagate_ms: dict[str, float]


class ScalingBenchmark(TypedDict):
    """What `bench scaling` writes."""

    command: str
    machine: dict[str, Any]
    config: dict[str, Any]
    num_steps: int
    datasets: list[str]
    scaling: dict[str, list[dict[str, Any]]]
    efficiency: dict[str, dict[str, dict[str, float]]]


class TrafficBenchmark(TypedDict):
    """What `bench comm` writes; bytes (models/common/work.py, ``Traffic``), a table for each worker."""

    command: str
    machine: dict[str, Any]
    config: dict[str, Any]
    predicted_bytes: dict[str, list[dict[str, int]]]
    measured_bytes: dict[str, list[dict[str, int]]]


class GpuPrediction(TypedDict):
    """What `bench gpus` writes."""

    command: str
    assumed: dict[str, float]
    torch: str
    config: dict[str, Any]
    gpus: dict[str, dict[str, dict[str, Any]]]


class StreamBenchmark(TypedDict):
    """What `bench stream` writes."""

    command: str
    machine: dict[str, Any]
    batches_ahead: int
    streams: dict[str, dict[str, Any]]


class OperationBenchmark(TypedDict):
    """What `bench denoise`, `rebuild`, `propagate`, `contrast`, `evaluate`, `epoch` and `threads` write."""

    command: str
    machine: dict[str, Any]
    case: str
    repeats: int
    sizes: list[dict[str, Any]]


class GrowthBenchmark(TypedDict):
    """What `bench growth` writes."""

    command: str
    machine: dict[str, Any]
    config: dict[str, Any]
    base: dict[str, int]
    growth: dict[str, dict[str, Any]]


class MemoryBenchmark(TypedDict):
    """What `bench memory` writes; sizes in bytes."""

    command: str
    machine: dict[str, Any]
    memory: dict[str, dict[str, Any]]


class StudentsBenchmark(TypedDict):
    """What `bench students` writes."""

    command: str
    machine: dict[str, Any]
    calibration: str
    product_seconds: float
    groups: dict[str, dict[str, Any]]


class ServingBenchmark(TypedDict):
    """What `bench serve` writes; times in ms, memory in MiB."""

    command: str
    machine: dict[str, Any]
    bundle: dict[str, Any]
    clients: int
    seconds: float
    k: int
    seed: int
    serving: dict[str, dict[str, Any]]


class ColdStartBenchmark(TypedDict):
    """What `bench coldstart` writes."""

    command: str
    machine: dict[str, Any]
    config: dict[str, Any]
    dataset: dict[str, Any]
    seed: int
    k: int
    fold_in: dict[str, Any]
    cold_items: NotRequired[dict[str, Any]]


Document = (
    TrainingBenchmark
    | PropagationBenchmark
    | ScalingBenchmark
    | TrafficBenchmark
    | GpuPrediction
    | StreamBenchmark
    | OperationBenchmark
    | GrowthBenchmark
    | MemoryBenchmark
    | StudentsBenchmark
    | ServingBenchmark
    | ColdStartBenchmark
)
