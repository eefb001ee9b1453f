"""Two files of the same operation benchmark side by side, such as from two machines or two versions."""

from collections.abc import Iterator, Sequence

from diffmm_dist import storage
from diffmm_dist.bench.documents import OperationBenchmark
from diffmm_dist.bench.report import complete, size_text, table
from diffmm_dist.errors import UserError

Key = tuple[str, str, str]
_REMEDY = "give a file written by bench denoise, rebuild, propagate, contrast, evaluate, epoch or threads"


def compare(before: str, after: str) -> str:
    """Return a markdown table of the medians of variants that both files have, and their ratios before / after.

    The last column is the ratio of the times in units of each file's own product, measured in the same turns, which
    compares programs where the machines or the moments differ.

    Args:
        before: a JSON file written by ``bench denoise``, ``rebuild``, ``propagate``, ``contrast``, ``evaluate``,
            ``epoch`` or ``threads``.
        after: another.

    Raises:
        UserError: a file is not one of these, or the two have no variant of an operation at the same size in common.
    """
    documents = [storage.read_record(file, OperationBenchmark, remedy=_REMEDY) for file in (before, after)]
    with complete([before, after]):
        return _compared(before, after, documents)


def _compared(before: str, after: str, documents: Sequence[OperationBenchmark]) -> str:
    cases = [document["case"] for document in documents]
    if cases[0] != cases[1]:
        raise UserError(f"{before} is of bench {cases[0]} and {after} of bench {cases[1]}; compare files of one case")
    old, new = (dict(_times(document)) for document in documents)
    rows = []
    for key in old:
        if key in new:
            (mine, product), (other, other_product) = old[key], new[key]
            ratios = [f"{mine / other:.2f}", f"{mine / product / (other / other_product):.2f}"]
            rows.append([*key, f"{mine:.4g}", f"{other:.4g}", *ratios])
    if not rows:
        raise UserError(f"{before} and {after} have no variant at the same size in common; measure the same sizes")
    columns = ["size", "operation", "variant", "before, s", "after, s", "before / after", "the same in products"]
    return "\n".join(table(columns, rows)[:-1]) + "\n"


def _times(document: OperationBenchmark) -> Iterator[tuple[Key, tuple[float, float]]]:
    """Yield the median seconds of each variant and of the product beside it, keyed by size, operation and variant."""
    for entry in document["sizes"]:
        for operation, result in entry["operations"].items():
            product = result["probes"]["gemm"]["seconds"]["median"]
            for variant, measured in result["variants"].items():
                yield (size_text(entry), operation, variant), (measured["seconds"]["median"], product)
