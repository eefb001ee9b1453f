"""Tables of interactions and item features, as companies have them, to a dataset."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import pyarrow as pa

from diffmm_dist import storage
from diffmm_dist.data.importers.arrow_tables import Table
from diffmm_dist.data.importers.features import Features, FeatureSource
from diffmm_dist.data.importers.interactions import InteractionColumns, Interactions, SplitRule
from diffmm_dist.data.importers.report import ImportReport
from diffmm_dist.data.schema import MANIFEST, SPLITS
from diffmm_dist.data.writer import DatasetWriter, dataset_writer
from diffmm_dist.errors import UserError

WithoutFeatures = Literal["error", "zero", "drop"]
WITHOUT_FEATURES: tuple[WithoutFeatures, ...] = ("error", "zero", "drop")
_ROWS_PER_CHUNK = 16_384


@dataclass(frozen=True)
class TableImport:
    """What to import, and how.

    Attributes:
        interactions: a table, or a folder of them.
        columns: its columns.
        rule: how to split.
        features: of every modality.
        min_rating: the lowest rating that counts as an interaction.
        k_core: how many interactions every user and item must have, 0 for any.
        without_features: what to do about items that lack the features of a modality: refuse, give them zeros, or drop
            their interactions.
        all_items: keep items that have features but no interaction.
        text_ids: do not take the ids of CSV files for numbers.
        memory_gib: what the import's database may hold in memory.
    """

    interactions: str
    columns: InteractionColumns
    rule: SplitRule = field(default_factory=SplitRule)
    features: tuple[FeatureSource, ...] = ()
    min_rating: float | None = None
    k_core: int = 0
    without_features: WithoutFeatures = "error"
    all_items: bool = False
    text_ids: bool = False
    memory_gib: float = 1.0


def import_tables(settings: TableImport, out: str, *, importer: str = "tables", force: bool = False) -> ImportReport:
    """Convert tables into a dataset, in memory that does not grow with the number of interactions.

    Rows without ids or with low ratings are dropped, repeated pairs merged, then items without features dropped where
    asked for, then the k-core taken, then the rest split.

    Raises:
        UserError: the settings contradict each other, a table is missing or damaged, or nothing remains.
    """
    _check(settings)
    storage.check_place(out, marker=MANIFEST, force=force)  # now, not after an hour
    text_columns = [settings.columns.user, settings.columns.item] if settings.text_ids else []
    table = Table(settings.interactions, text_columns=text_columns)
    features = [Features(source) for source in settings.features]
    with (
        tempfile.TemporaryDirectory(prefix="diffmm-import-") as folder,
        Interactions(folder, memory_gib=settings.memory_gib) as interactions,
    ):
        interactions.load(table, settings.columns, settings.rule, min_rating=settings.min_rating)
        _select(interactions, features, settings)
        interactions.split(settings.rule)
        users = interactions.final_ids("user")
        items = interactions.final_ids("item", all_items=settings.all_items)
        with dataset_writer(out, num_users=len(users), num_items=len(items), force=force) as writer:
            writer.made_by = _described(settings, importer)
            writer.add_ids("users", users)
            writer.add_ids("items", items)
            _write_interactions(writer, interactions)
            notes = [note for source in features for note in _write_features(writer, source, items, folder)]
    return ImportReport(notes=(*interactions.notes, *notes))


def _check(settings: TableImport) -> None:
    rule, columns = settings.rule, settings.columns
    shares = (rule.valid_share, rule.test_share)
    problems = [
        (rule.by_time and columns.timestamp is None, f"--split {rule.method} needs --timestamp"),
        ((rule.method == "column") != (columns.split is not None), "--split column and --split-column go together"),
        (settings.min_rating is not None and columns.rating is None, "--min-rating needs --rating"),
        (min(shares) < 0 or sum(shares) >= 1, "--valid-share and --test-share must be at least 0 and below 1 together"),
        (settings.all_items and not settings.features, "--all-items needs --features"),
        (settings.memory_gib < 0.25, "--memory-gib must be at least 0.25"),
    ]  # fmt: skip
    wrong = [sentence for is_wrong, sentence in problems if is_wrong]
    if wrong:
        raise UserError("; ".join(wrong))


def _select(interactions: Interactions, features: Sequence[Features], settings: TableImport) -> None:
    """Number users and items and drop the interactions that are not wanted."""
    available = {source.modality: source.ids(interactions.item_type) for source in features}
    interactions.number(extra_items=list(available.values()) if settings.all_items else ())
    for modality, ids in available.items():
        if settings.without_features == "drop":
            interactions.drop_items(ids, reason=f"without {modality} features")
    if settings.k_core > 1:
        interactions.keep_core(settings.k_core)
    for modality, ids in available.items():
        count = interactions.missing_items(ids)
        if count and settings.without_features == "error":
            raise UserError(
                f"{count:,} items with interactions have no {modality} features; pass --without-features zero to give "
                "them zeros, or drop to leave their interactions out"
            )


def _write_interactions(writer: DatasetWriter, interactions: Interactions) -> None:
    for split in SPLITS:
        for users, items in interactions.batches(split):
            writer.add_interactions(split, users, items)


def _write_features(writer: DatasetWriter, source: Features, item_ids: pa.Array, folder: str) -> list[str]:
    """Write the features of a modality; say how many items have none."""
    rows, num_missing = source.gather(item_ids, folder)
    for start in range(0, len(item_ids), _ROWS_PER_CHUNK):
        writer.add_features(source.modality, rows[start : start + _ROWS_PER_CHUNK])
    return [f"{num_missing:,} items have zeros for {source.modality} features"] if num_missing else []


def _described(settings: TableImport, importer: str) -> dict[str, object]:
    """What the manifest says of an import; no addresses, which may be private."""
    rule = settings.rule
    described = {
        "importer": importer,
        "source": settings.interactions.rstrip("/").rsplit("/", 1)[-1],
        "split": rule.method,
        "k_core": settings.k_core,
        "min_rating": settings.min_rating,
    }
    if rule.method in ("random", "time"):
        described |= {"valid_share": rule.valid_share, "test_share": rule.test_share, "seed": rule.seed}
    return described
