"""The frame of the operation benchmarks: variants of an operation, timed in turns with what the machine can do.

FLOP and bytes of a variant are the least that its algorithm needs: a multiplication and an addition of a product are
two operations, other functions of values none; an input that does not fit the cache is read once by each product that
needs it, a result is written once, and so is every intermediate array that is too large for the cache. Arrays that the
algorithm keeps small on purpose, such as blocks of scores, do not count.

Two probes take part in every turn, a float32 product of square matrices and a copy, so a busy moment hits them too. The
shares of what they reach are medians of the ratios inside a turn, and so is ``before_over_after``, a variant's time
over the first one's.

The file of a case has ``sizes``, each with the ``values`` behind its name and its ``operations`` by name; an operation
has its ``probes``, its ``variants``, and ``facts`` about the results. Times are in seconds: median, min and max.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from statistics import median
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import torch

from diffmm_dist import storage
from diffmm_dist.bench.machine import command, machine
from diffmm_dist.bench.memory import extra_mib
from diffmm_dist.config.section import LARGEST_COUNT
from diffmm_dist.errors import UserError, closest
from diffmm_dist.monitoring.timing import take_turns
from diffmm_dist.training.worker import prepare_process

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    Size = TypeVar("Size", bound=DataclassInstance)
else:
    Size = TypeVar("Size")

GEMM_WIDTH = 2048  # of the square matrices that are multiplied
_IN_A_ROW = 4  # products and copies of a probe, the first of which finds nothing in the caches
COPY_MIB = 256  # read, and as much written
FLOAT = 4
_GEMM, _COPY = "probe: product", "probe: copy"


@dataclass(frozen=True)
class Variant:
    """One way to compute an operation.

    Attributes:
        call: computes it.
        flop: operations that it needs.
        bytes: bytes that it reads and writes.
    """

    call: Callable[[], object]
    flop: float
    bytes: float


@dataclass(frozen=True)
class Operation:
    """What is timed together.

    Attributes:
        name: for tables.
        variants: by name, the first to compare the others with.
        facts: what is to be recorded of the results, asked for after the last turn; ``same_lists`` must be true.
        parts: the variants are parts of one whole, run in their order, and not compared.
        memory: measure what each variant takes; not where it computes in another process.
    """

    name: str
    variants: Mapping[str, Variant]
    facts: Callable[[], dict[str, Any]] = dict
    parts: bool = False
    memory: bool = True


@dataclass(frozen=True)
class Case(Generic[Size]):
    """Operations at any size.

    Attributes:
        name: of the command.
        presets: sizes by name, each a dataclass of whole numbers.
        operations: makes the operations of a size on a device, one after the other.
    """

    name: str
    presets: Mapping[str, Size]
    operations: Callable[[Size, torch.device], Iterator[Operation]]


def bench_case(
    case: Case[Any], sizes: Sequence[str], *, repeats: int, out: str, device: str = "cpu", threads: int = 0
) -> None:
    """Measure a case at several sizes and write a JSON file.

    Args:
        case: the case.
        sizes: presets and changes to them, as ``parse_size`` reads them.
        repeats: turns.
        out: the JSON file.
        device: ``cpu`` or ``cuda``.
        threads: of torch; 0 takes all that this process may use.

    Raises:
        UserError: a size is not one, the device is not there, or two variants differ in what must be the same.
    """
    parsed = {text: parse_size(case.presets, text) for text in sizes}
    place = open_device(device)
    prepare_process(threads)
    results = [
        {
            "size": text,
            "values": asdict(size),
            "operations": {
                operation.name: measure(operation, repeats=repeats, device=place)
                for operation in case.operations(size, place)
            },
        }
        for text, size in parsed.items()
    ]
    write_results(out, case.name, results, repeats=repeats, device=place)


def write_results(out: str, case: str, sizes: list[dict[str, Any]], *, repeats: int, device: torch.device) -> None:
    """Write the JSON file of a case.

    Raises:
        UserError: two variants of an operation give different lists; the file is written nevertheless.
    """
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    storage.write_json(
        out,
        {
            "command": command(),
            "machine": machine() | {"device": name},
            "case": case,
            "repeats": repeats,
            "sizes": sizes,
        },
    )
    for entry in sizes:
        for operation, result in entry["operations"].items():
            if not result["facts"].get("same_lists", True):
                raise UserError(
                    f"the variants of '{operation}' at size {entry['size']} give different lists; see {out}"
                )


def open_device(name: str) -> torch.device:
    """Return the device ``cpu`` or ``cuda``.

    Raises:
        UserError: it is another one, or there is none.
    """
    if name not in ("cpu", "cuda"):
        raise UserError(f"--device {name} is none of cpu, cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda needs a GPU, and torch finds none here; take cpu")
    return torch.device(name)


def parse_size(presets: Mapping[str, Size], text: str) -> Size:
    """Return a size from the name of a preset, changes to the first preset, or both: ``large,batch=512``.

    Raises:
        UserError: there is no such preset or value, or one is no whole number of at least 1.
    """
    name, *words = text.split(",")
    if "=" in name:
        name, words = next(iter(presets)), [name, *words]
    if name not in presets:
        raise UserError(f"--size {text}: '{name}' is none of {', '.join(presets)}{closest(name, list(presets))}")
    size = presets[name]
    known = [field.name for field in fields(size)]
    changes = {}
    for word in words:
        key, _, value = word.partition("=")
        if key not in known:
            raise UserError(f"--size {text}: '{key}' is none of {', '.join(known)}{closest(key, known)}")
        if not value.isdecimal() or not 1 <= int(value) <= LARGEST_COUNT:
            raise UserError(f"--size {text}: {key} must be a whole number of at least 1, such as {key}=100")
        changes[key] = int(value)
    return replace(size, **changes)


def measure(operation: Operation, *, repeats: int, device: torch.device) -> dict[str, Any]:
    """Time the variants and the probes in turns; return the ``operations`` entry of the JSON file.

    Memory is taken in one more call of each variant.
    """
    probes = _probes(device)
    calls = {name: variant.call for name, variant in (*operation.variants.items(), *probes.items())}
    seconds = take_turns({name: partial(_finished, call, device) for name, call in calls.items()}, repeats=repeats)
    for probe in probes:
        seconds[probe] = [several / _IN_A_ROW for several in seconds[probe]]
    first = seconds[next(iter(operation.variants))]
    results = {}
    for name, variant in operation.variants.items():
        results[name] = {
            "seconds": spread(seconds[name]),
            "flop": variant.flop,
            "bytes": variant.bytes,
            "share_of_gemm_peak": variant.flop * _per_unit(seconds[_GEMM], seconds[name]) / probes[_GEMM].flop,
            "share_of_copy_peak": variant.bytes * _per_unit(seconds[_COPY], seconds[name]) / probes[_COPY].bytes,
        }
        if not operation.parts:
            results[name]["before_over_after"] = _per_unit(seconds[name], first)
            results[name]["extra_mib"] = extra_mib(calls[name], device) if operation.memory else None
    return {
        "probes": {
            "gemm": {
                "seconds": spread(seconds[_GEMM]),
                "gflop_per_s": probes[_GEMM].flop / median(seconds[_GEMM]) / 1e9,
            },
            "copy": {"seconds": spread(seconds[_COPY]), "gb_per_s": probes[_COPY].bytes / median(seconds[_COPY]) / 1e9},
        },
        "variants": results,
        "facts": operation.facts(),
    }


def _per_unit(times: Sequence[float], units: Sequence[float]) -> float:
    """Return the median of the ratios inside a turn."""
    return median(time / unit for time, unit in zip(times, units, strict=True))


def spread(values: Sequence[float]) -> dict[str, float]:
    """Return median, least and most."""
    return {"median": median(values), "min": min(values), "max": max(values)}


def _finished(call: Callable[[], object], device: torch.device) -> None:
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _probes(device: torch.device) -> dict[str, Variant]:
    left, right = (torch.ones(GEMM_WIDTH, GEMM_WIDTH, device=device) for _ in range(2))
    product = torch.empty_like(left)
    source = torch.ones(COPY_MIB * 2**20 // FLOAT, device=device)
    target = torch.empty_like(source)

    def products() -> None:
        for _ in range(_IN_A_ROW):
            torch.mm(left, right, out=product)

    def copies() -> None:
        for _ in range(_IN_A_ROW):
            target.copy_(source)

    return {
        _GEMM: Variant(products, 2 * GEMM_WIDTH**3, 3 * GEMM_WIDTH**2 * FLOAT),
        _COPY: Variant(copies, 0, 2 * source.nbytes),
    }
