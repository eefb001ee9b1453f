"""Tables of interactions and item features, as companies have them, to a dataset."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Literal, get_args

import pyarrow as pa

from diffmm_dist import storage
from diffmm_dist.data.schema import MANIFEST, SPLITS
from diffmm_dist.data.writer import DatasetWriter, dataset_writer
from diffmm_dist.errors import UserError, closest
from diffmm_dist.preparation.importers.arrow_tables import Table
from diffmm_dist.preparation.importers.cleaning import Cleaning, InteractionColumns, split_key
from diffmm_dist.preparation.importers.columns import least
from diffmm_dist.preparation.importers.database import check_timestamp_format
from diffmm_dist.preparation.importers.features import Features, FeatureSource
from diffmm_dist.preparation.importers.interactions import Interactions
from diffmm_dist.preparation.importers.knowledge_tables import KnowledgeSource, KnowledgeTables
from diffmm_dist.preparation.importers.report import ImportReport, Mistakes
from diffmm_dist.preparation.importers.splits import SPLIT_METHODS, SplitRule
from diffmm_dist.preparation.importers.table_formats import TextOptions
from diffmm_dist.staging import scratch_folder

WithoutFeatures = Literal["error", "zero", "drop"]
WITHOUT_FEATURES: tuple[WithoutFeatures, ...] = get_args(WithoutFeatures)
_LARGEST_CORE = 2**31 - 1
_LARGEST_MEMORY_GIB = 1e6


@dataclass(frozen=True)
class TableImport:
    """What to import, and how.

    Attributes:
        interactions: a table, or a folder of them.
        columns: its columns.
        rule: how to split.
        features: of every modality.
        knowledge: a knowledge graph about the items, if there is one.
        min_rating: the lowest rating that counts as an interaction.
        k_core: how many interactions every user and item must have, 0 for any.
        without_features: what to do about items that lack the features of a modality: refuse, give them zeros, or drop
            their interactions.
        all_items: keep items that have features but no interaction.
        text_ids: ids are text, whatever they look like.
        timestamp_format: of times that are text, as ``strptime`` has it.
        delimiter: between the columns of CSV files, None for what their ending says.
        encoding: of CSV files.
        memory_gib: what the import's database may hold in memory.
    """

    interactions: str
    columns: InteractionColumns
    rule: SplitRule = field(default_factory=SplitRule)
    features: tuple[FeatureSource, ...] = ()
    knowledge: KnowledgeSource | None = None
    min_rating: float | None = None
    k_core: int = 0
    without_features: WithoutFeatures = "error"
    all_items: bool = False
    text_ids: bool = False
    timestamp_format: str | None = None
    delimiter: str | None = None
    encoding: str = "utf-8"
    memory_gib: float = 1.0


def import_tables(
    settings: TableImport, out: str, *, importer: str = "tables", force: bool = False, mistakes: Sequence[str] = ()
) -> ImportReport:
    """Convert tables into a dataset, in memory that does not grow with the number of interactions.

    Rows without what is needed of them or with low ratings are dropped, repeated pairs merged, then items without
    features dropped where asked for, then the k-core taken, then the rest split.

    Args:
        settings: what to import.
        out: the dataset to write.
        importer: its name, for the manifest.
        force: replace a dataset that is already there.
        mistakes: what the caller found wrong with its options, to be told together with the rest.

    Raises:
        UserError: the settings contradict each other, a table is missing or damaged, or nothing remains.
    """
    table, features, facts = _opened(settings, out, mistakes, force=force)
    with (
        scratch_folder("diffmm-import-") as folder,
        Interactions(folder, memory_gib=settings.memory_gib) as interactions,
    ):
        cleaning = Cleaning(settings.min_rating, settings.timestamp_format, settings.text_ids)
        interactions.load(table, settings.columns, settings.rule, cleaning)
        for source in features:
            source.read(interactions.item_ids(), folder, all_items=settings.all_items, text_ids=settings.text_ids)
        _select(interactions, features, settings)
        interactions.split(settings.rule)
        users = interactions.final_ids("user")
        items = interactions.final_ids("item", all_items=settings.all_items)
        notes = [note for source in features for note in _lacking(source, items, settings, importer)]
        axes = None
        if facts is not None:
            facts.load(interactions.database, items, text_ids=settings.text_ids)
            axes = facts.axes()
        with dataset_writer(out, num_users=len(users), num_items=len(items), axes=axes, force=force) as writer:
            writer.made_by = _described(settings, importer)
            writer.add_ids("users", users)
            writer.add_ids("items", items)
            _write_interactions(writer, interactions)
            _write_features(writer, features, items)
            if facts is not None:
                facts.write(writer)
    of_features = [note for source in features for note in source.notes]
    of_facts = facts.notes if facts is not None else []
    return ImportReport(notes=(*table.notes, *of_features, *interactions.notes, *notes, *of_facts))


def _opened(
    settings: TableImport, out: str, mistakes: Sequence[str], *, force: bool
) -> tuple[Table, list[Features], KnowledgeTables | None]:
    """Open all tables, and tell all mistakes together."""
    wrong = Mistakes([*mistakes, *_mistakes(settings)])
    if settings.timestamp_format is not None:
        with wrong.collected():
            check_timestamp_format(settings.timestamp_format)
    with wrong.collected():
        of_facts = settings.knowledge.uris if settings.knowledge else []
        sources = [settings.interactions, *(source.uri for source in settings.features), *of_facts]
        storage.check_place(out, marker=MANIFEST, force=force, sources=sources)  # now, not after an hour
    features, facts = [], None
    with wrong.collected():
        text = TextOptions(settings.delimiter, settings.encoding)
        with wrong.collected():
            table = Table(settings.interactions, text)
            table.check_columns(settings.columns.names())
        for source in settings.features:
            with wrong.collected():
                features.append(Features(source, text))
        if settings.knowledge is not None:
            with wrong.collected():
                facts = KnowledgeTables(settings.knowledge, text)
    wrong.check()
    return table, features, facts


def _mistakes(settings: TableImport) -> Iterator[str]:
    """Yield what is wrong with the settings, whatever the tables hold."""
    rule, columns = settings.rule, settings.columns
    shares = (rule.valid_share, rule.test_share)
    min_rating = settings.min_rating
    choices = (
        ("--split", rule.method, SPLIT_METHODS),
        ("--without-features", settings.without_features, WITHOUT_FEATURES),
    )
    for option, value, known in choices:
        if value not in known:
            yield f"{option} {value} is none of {', '.join(known)}{closest(value, list(known))}"
    options = {"user": "--user", "item": "--item", "timestamp": "--timestamp", "rating": "--rating",
               "split": "--split-column"}  # fmt: skip
    for first, second in combinations(options, 2):
        if getattr(columns, first) is not None and getattr(columns, first) == getattr(columns, second):
            name = getattr(columns, first)
            yield f"{options[first]} and {options[second]} both name column '{name}'; each needs its own"
    values = [split_key(value) for value in rule.values]
    problems = [
        (rule.by_time and columns.timestamp is None, f"--split {rule.method} needs --timestamp"),
        ((rule.method == "column") != (columns.split is not None), "--split column and --split-column go together"),
        (len(set(values)) != 3 or len(values) != 3 or "" in values,
         f"--split-values {','.join(rule.values)} must be three values that differ, such as train,valid,test"),
        (min_rating is not None and columns.rating is None, "--min-rating needs --rating"),
        (not math.isfinite(min_rating or 0), f"--min-rating {min_rating} must be finite"),
        (settings.timestamp_format is not None and columns.timestamp is None, "--timestamp-format needs --timestamp"),
        (not (min(shares) >= 0 and sum(shares) < 1 and all(map(math.isfinite, shares))),
         "--valid-share and --test-share must be at least 0 and below 1 together"),
        (not 0 <= settings.k_core <= _LARGEST_CORE, f"--k-core must be between 0 and {_LARGEST_CORE}"),
        (settings.all_items and not settings.features, "--all-items needs --features"),
        (not 0.25 <= settings.memory_gib <= _LARGEST_MEMORY_GIB, "--memory-gib must be from 0.25 to a million"),
    ]  # fmt: skip
    yield from (sentence for is_wrong, sentence in problems if is_wrong)


def _select(interactions: Interactions, features: Sequence[Features], settings: TableImport) -> None:
    """Number users and items and drop the interactions that are not wanted."""
    interactions.number(extra_items=[source.ids for source in features] if settings.all_items else ())
    if settings.without_features == "drop":
        for source in features:
            interactions.drop_items(source.ids, reason=f"without {source.modality} features")
    if settings.k_core > 1:
        interactions.keep_core(settings.k_core)


def _lacking(source: Features, items: pa.Array, settings: TableImport, importer: str) -> list[str]:
    """Refuse items that lack the features of a modality, or say how many have zeros."""
    lacking = source.lacking(items)
    if not len(lacking):
        return []
    if settings.without_features == "zero":
        return [f"{len(lacking):,} items have zeros for {source.modality} features"]
    which = "items" if settings.all_items else "items with interactions"
    rows = "" if source.num_rows is None else f" (there are {source.num_rows:,} rows, row n for item n)"
    remedy = "pass --without-features zero to give them zeros, or drop to leave their interactions out"
    raise UserError(
        f"{len(lacking):,} {which} have no {source.modality} features; "
        f"{remedy if importer == 'tables' else 'give a row for every item'}; one is {least(lacking)!r}{rows}"
    )


def _write_interactions(writer: DatasetWriter, interactions: Interactions) -> None:
    for split in SPLITS:
        for users, items in interactions.batches(split):
            writer.add_interactions(split, users, items)


def _write_features(writer: DatasetWriter, features: Sequence[Features], items: pa.Array) -> None:
    for source in features:
        for rows in source.rows_of(items):
            writer.add_features(source.modality, rows)


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
        described |= {"valid_share": rule.valid_share, "test_share": rule.test_share}
    if rule.method in ("random", "leave-last-out"):
        described["seed"] = rule.seed
    return described
