"""The commands that make datasets and show them."""

import math
from collections import defaultdict
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import typer

from diffmm_dist.cli_options import Dataset, Force, Json, Out, one_of, place
from diffmm_dist.monitoring.log import print_table, say, say_json

if TYPE_CHECKING:
    from diffmm_dist.data.dataset import Dataset as _Dataset
    from diffmm_dist.data.schema import Partition
    from diffmm_dist.preparation.importers.features import FeatureSource
    from diffmm_dist.preparation.importers.knowledge_tables import KnowledgeSource
    from diffmm_dist.preparation.importers.report import ImportReport

# Commands import what they need when they run, as those of cli.py do.

prepare_app = typer.Typer(help="Make a dataset: import raw data or generate some.", no_args_is_help=True)


@prepare_app.command("diffmm", help="The same as prepare published.")
@prepare_app.command("published")
def prepare_published(
    folder: Annotated[
        str,
        typer.Argument(
            help="Holds trnMat.pkl and tstMat.pkl, and may hold valMat.pkl, image_, text_ and audio_feat.npy, kg.txt.",
            callback=place,
        ),
    ],
    out: Out,
    force: Force = False,
) -> None:
    """Import a folder in the form published with DiffMM, AdaGCL, DiffKG or PromptMM; pickles may hold matrices only."""
    from diffmm_dist.preparation.importers.published import import_published

    _check_out(out, force, folder)
    report = import_published(folder, out, force=force)
    _show_import(out, report, folder)


@prepare_app.command("mmrec")
def prepare_mmrec(
    folder: Annotated[str, typer.Argument(help="Holds one .inter file with x_label, and *_feat.npy.", callback=place)],
    out: Out,
    force: Force = False,
) -> None:
    """Import a folder of the MMRec toolbox."""
    from diffmm_dist.preparation.importers.mmrec import import_mmrec

    _check_out(out, force, folder)
    report = import_mmrec(folder, out, force=force)
    _show_import(out, report, folder)


Interactions = Annotated[str, typer.Argument(help="Parquet, CSV, Arrow or JSON lines: a file, a folder or a pattern.")]
FeatureItem = Annotated[
    list[str] | None, typer.Option(help="MODALITY=COLUMN of item ids, or COLUMN of all tables, if not as --item.")
]
FeatureColumns = Annotated[
    list[str] | None, typer.Option(help="MODALITY=PATTERN of the columns with features, such as visual=emb_*.")
]
ItemEntity = Annotated[
    str | None, typer.Option(help="Table that says which entity each item is, if they are not called the same.")
]


@prepare_app.command("tables")
def prepare_tables(
    interactions: Interactions,
    out: Out,
    user: Annotated[str, typer.Option(help="Column of user ids, whole numbers or text.")],
    item: Annotated[str, typer.Option(help="Column of item ids, whole numbers or text.")],
    timestamp: Annotated[str | None, typer.Option(help="Column of times.")] = None,
    timestamp_format: Annotated[str | None, typer.Option(help="Of times as text, such as %d.%m.%Y %H:%M:%S.")] = None,
    rating: Annotated[str | None, typer.Option(help="Column of ratings.")] = None,
    min_rating: Annotated[float | None, typer.Option(help="Lowest rating that counts.")] = None,
    split: Annotated[str, typer.Option(help="random, leave-last-out, time, or column.")] = "random",
    valid_share: Annotated[float, typer.Option(help="For validation, with random and time.")] = 0.1,
    test_share: Annotated[float, typer.Option(help="For test, with random and time.")] = 0.1,
    split_column: Annotated[str | None, typer.Option(help="Column that says train, valid or test.")] = None,
    split_values: Annotated[str, typer.Option(help="What it holds for them.")] = "train,valid,test",
    k_core: Annotated[int, typer.Option(min=0, help="Interactions that every user and item must have.")] = 0,
    features: Annotated[list[str] | None, typer.Option(help="MODALITY=TABLE, repeatable.")] = None,
    feature_item: FeatureItem = None,
    feature_columns: FeatureColumns = None,
    without_features: Annotated[str, typer.Option(help="Items without features: error, zero, or drop.")] = "error",
    knowledge: Annotated[str | None, typer.Option(help="Table of facts about the items: a knowledge graph.")] = None,
    head: Annotated[str | None, typer.Option(help="Its column of heads.")] = None,
    relation: Annotated[str | None, typer.Option(help="Its column of relations.")] = None,
    tail: Annotated[str | None, typer.Option(help="Its column of tails.")] = None,
    item_entity: ItemEntity = None,
    entity: Annotated[str, typer.Option(help="Its column of entities; --item says that of items.")] = "entity",
    all_items: Annotated[bool, typer.Option("--all-items", help="Keep items without interaction.")] = False,
    string_ids: Annotated[bool, typer.Option("--string-ids", help="Ids are text, such as 0042.")] = False,
    delimiter: Annotated[str | None, typer.Option(help="Between the columns of CSV files, if not , or a tab.")] = None,
    encoding: Annotated[str, typer.Option(help="Of CSV files.")] = "utf-8",
    seed: Annotated[int, typer.Option(min=0, help="Seed of the random split, and of ties.")] = 7,
    memory_gib: Annotated[float, typer.Option(help="What the import's database may hold in memory.")] = 1.0,
    force: Force = False,
) -> None:
    """Import tables of interactions, of item features and of facts about the items."""
    from diffmm_dist.preparation.importers import tables
    from diffmm_dist.preparation.importers.cleaning import InteractionColumns
    from diffmm_dist.preparation.importers.report import Mistakes
    from diffmm_dist.preparation.importers.splits import SplitRule

    mistakes = Mistakes()
    settings = tables.TableImport(
        interactions,
        InteractionColumns(user, item, timestamp, rating, split_column),
        # Choices are checked with the rest, so that all mistakes are told at once.
        SplitRule(cast(Any, split), valid_share, test_share, tuple(split_values.split(",")), seed),
        _feature_sources(features, feature_item, feature_columns, mistakes, item=item),
        _knowledge_source(knowledge, (head, relation, tail), item_entity, mistakes, item=item, entity=entity),
        min_rating=min_rating,
        k_core=k_core,
        without_features=cast(Any, without_features),
        all_items=all_items,
        text_ids=string_ids,
        timestamp_format=timestamp_format,
        delimiter={"\\t": "\t", "tab": "\t"}.get(delimiter or "", delimiter),
        encoding=encoding,
        memory_gib=memory_gib,
    )
    report = tables.import_tables(settings, out, force=force, mistakes=mistakes)
    _show_import(out, report, interactions)


def _feature_sources(
    tables: list[str] | None, items: list[str] | None, columns: list[str] | None, mistakes: list[str], *, item: str
) -> "tuple[FeatureSource, ...]":
    """Return where the features of each modality are, from --features, --feature-item and --feature-columns."""
    from diffmm_dist.preparation.importers.features import FeatureSource

    sources = _named(tables, "--features", mistakes)
    patterns = _named(columns, "--feature-columns", mistakes)
    every, own = _feature_items(items, mistakes)
    for option, named in (("--feature-columns", patterns), ("--feature-item", own)):
        unknown = [name for name in named if name not in sources]
        arrays = [name for name in named if sources.get(name, "").lower().endswith(".npy")]
        if unknown:
            mistakes.append(f"{option} names {', '.join(unknown)}, which --features does not")
        if arrays:
            mistakes.append(f"{option} names {', '.join(arrays)}, but a .npy file has no columns, and row n is item n")
    return tuple(
        FeatureSource(name, uri, own.get(name, every or item), patterns.get(name)) for name, uri in sources.items()
    )


def _knowledge_source(
    table: str | None,
    columns: tuple[str | None, str | None, str | None],
    item_entity: str | None,
    mistakes: list[str],
    *,
    item: str,
    entity: str,
) -> "KnowledgeSource | None":
    """Return where the facts are, from --knowledge and the options that belong to it."""
    from diffmm_dist.preparation.importers.knowledge_tables import KnowledgeSource

    head, relation, tail = columns
    if table is None:
        if any(value is not None for value in (*columns, item_entity)):
            mistakes.append("--head, --relation, --tail and --item-entity need --knowledge")
        return None
    if head is None or relation is None or tail is None:
        mistakes.append("--knowledge needs --head, --relation and --tail, the names of its columns")
        return None
    if len({head, relation, tail}) < 3:
        mistakes.append(f"--head {head}, --relation {relation} and --tail {tail} must be three different columns")
    return KnowledgeSource(table, head, relation, tail, item_entity, item, entity)


def _check_out(out: str, force: bool, *sources: str) -> None:
    """Refuse, before any work, to write where a dataset cannot be or where it is read from."""
    from diffmm_dist.data.schema import MANIFEST
    from diffmm_dist.storage import check_place

    check_place(out, marker=MANIFEST, force=force, sources=sources)


def _named(texts: list[str] | None, option: str, mistakes: list[str]) -> dict[str, str]:
    """Split NAME=VALUE texts."""
    named: dict[str, str] = {}
    for text in texts or []:
        name, _, value = text.partition("=")
        if not (name.isidentifier() and value):
            mistakes.append(f"{option} {text} must be a name and a value, such as visual=...")
        elif name in named:
            mistakes.append(f"{option} gives '{name}' twice; give each modality once")
        else:
            named[name] = value
    return named


def _feature_items(texts: list[str] | None, mistakes: list[str]) -> tuple[str | None, dict[str, str]]:
    """Return the column of item ids of all tables, if it is given, and those of single modalities."""
    plain = [text for text in texts or [] if not text.partition("=")[0].isidentifier() or "=" not in text]
    if len(plain) > 1:
        mistakes.append(f"--feature-item gives {' and '.join(plain)} for all tables; give one, or MODALITY=COLUMN")
    named = _named([text for text in texts or [] if text not in plain], "--feature-item", mistakes)
    return plain[0] if plain else None, named


def _show_import(out: str, report: "ImportReport", source: str) -> None:
    """Show the dataset that an import has made, and what it says."""
    _show_dataset(out)
    for name in report.missing:
        say(f"left out: {source}/{name} is not there")
    for note in report.notes:
        say(f"note: {note}")


@prepare_app.command("synthetic")
def prepare_synthetic(
    out: Out,
    users: Annotated[int, typer.Option(help="Number of users.")] = 2000,
    items: Annotated[int, typer.Option(help="Number of items.")] = 1500,
    interactions: Annotated[int, typer.Option(help="Number of interactions, of all splits together.")] = 24_000,
    modality: Annotated[list[str] | None, typer.Option(help="NAME:WIDTH, repeatable.")] = None,
    knowledge: Annotated[bool, typer.Option("--knowledge", help="With a knowledge graph about the items.")] = False,
    entities: Annotated[int | None, typer.Option(help="Its entities that are no items; by default items / 2.")] = None,
    facts: Annotated[int | None, typer.Option(help="About how many facts; by default 6 per item.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed.")] = 7,
    force: Force = False,
) -> None:
    """Generate a dataset whose modality features, and facts, carry the users' tastes."""
    from diffmm_dist.preparation.importers.report import Mistakes
    from diffmm_dist.preparation.synthetic import SyntheticSpec, generate
    from diffmm_dist.preparation.synthetic_knowledge import KnowledgeSpec

    mistakes = Mistakes()
    widths = _widths(modality or ["visual:64", "textual:32"], mistakes)
    if not knowledge and (entities is not None or facts is not None):
        mistakes.append("--entities and --facts need --knowledge")
    sizes = items // 2 if entities is None else entities, 6 * items if facts is None else facts
    spec = SyntheticSpec(users, items, interactions, widths, seed, KnowledgeSpec(*sizes) if knowledge else None)
    with mistakes.collected():
        spec.check()
    mistakes.check()
    generate(spec, out, force=force)
    _show_dataset(out)


def _widths(texts: list[str], mistakes: list[str]) -> dict[str, int]:
    """Split NAME:WIDTH texts."""
    widths: dict[str, int] = {}
    for text in texts:
        name, _, width = text.partition(":")
        if not (name.isidentifier() and width.isdecimal()):
            mistakes.append(f"--modality {text} must be a name and a width, such as visual:64")
        elif name in widths:
            mistakes.append(f"--modality gives '{name}' twice; give each modality once")
        else:
            widths[name] = int(width)
    return widths


def partition(
    dataset: Dataset,
    out: Out,
    num_parts: Annotated[int, typer.Option(help="Number of parts; more workers than that share them out evenly.")],
    method: Annotated[str, typer.Option(help="metis, or random, which cuts most edges, to compare with.")] = "metis",
    seed: Annotated[int, typer.Option(min=0, help="Seed of the random parts.")] = 7,
    force: Force = False,
) -> None:
    """Reorder a dataset so that neighbours lie in the same part and workers exchange less."""
    from diffmm_dist.preparation.partitioning import partition_dataset

    _check_out(out, force, dataset)
    methods: tuple[Literal["metis", "random"], ...] = ("metis", "random")
    chosen = one_of(method, methods, "--method")
    partition_dataset(dataset, out, num_parts=num_parts, method=chosen, seed=seed, force=force)
    _show_dataset(out)


def inspect(
    dataset: Dataset,
    verify: Annotated[bool, typer.Option("--verify", help="Read every file and compare its checksum.")] = False,
    as_json: Json = False,
) -> None:
    """Show what a dataset holds."""
    _show_dataset(dataset, verify=verify, as_json=as_json)


def _show_dataset(uri: str, *, verify: bool = False, as_json: bool = False) -> None:
    from diffmm_dist.data.dataset import Dataset

    dataset = Dataset.open(uri)
    if verify:
        dataset.verify()
    if as_json:
        say_json(_facts(dataset))
        return
    manifest = dataset.manifest
    train = dataset.interactions("train")
    cold_users, cold_items = int((train.row_counts == 0).sum()), int((train.column_counts == 0).sum())
    rows = [
        ["users", f"{dataset.num_users:,}", f"{cold_users:,} without training interactions"],
        ["items", f"{dataset.num_items:,}", f"{cold_items:,} without training interactions"],
    ]
    for split in ("train", "valid", "test"):
        count = manifest.num_interactions(split)
        density = count / (dataset.num_users * dataset.num_items)
        rows.append([f"{split} interactions", f"{count:,}", f"density {density:.4%}"])
    rows += [[name, f"{entry.width} wide", entry.dtype] for name, entry in manifest.modalities.items()]
    rows += _knowledge_rows(dataset)
    rows.append(["made by", str(manifest.made_by.get("importer", "")), f"fingerprint {manifest.fingerprint[:12]}"])
    if verify:
        rows.append(["checksums", f"{len(manifest.files())} files", "all match"])
    print_table(f"dataset {uri}", ["", "", ""], rows)
    if manifest.partition is not None:
        _show_partition(manifest.partition, manifest.made_by.get("cut_by"))


def _facts(dataset: "_Dataset") -> dict[str, object]:
    """Return what a dataset holds, for machines."""
    manifest = dataset.manifest
    train = dataset.interactions("train")
    lone = {"users": int((train.row_counts == 0).sum()), "items": int((train.column_counts == 0).sum())}
    modalities = {name: {"width": entry.width, "dtype": entry.dtype} for name, entry in manifest.modalities.items()}
    return {
        "dataset": dataset.uri,
        "fingerprint": manifest.fingerprint,
        "counts": manifest.counts,
        "without_training_interactions": lone,
        "interactions": {split: manifest.num_interactions(split) for split in ("train", "valid", "test")},
        "modalities": modalities,
        "tables": list(manifest.tables),
        "parts": None if manifest.partition is None else manifest.partition.num_parts,
    }


def _knowledge_rows(dataset: "_Dataset") -> list[list[str]]:
    """Return what there is to say of a knowledge graph, if the dataset holds one."""
    from diffmm_dist.data.knowledge import TABLE, summary

    if TABLE not in dataset.manifest.tables:
        return []
    found = summary(dataset)
    busiest = ", ".join(f"{name} {count:,}" for name, count in found.busiest)
    return [
        ["entities", f"{found.num_entities:,}", f"{found.num_lone:,} without facts, items among them"],
        ["relations", f"{found.num_relations:,}", busiest],
        ["facts", f"{found.num_facts:,}", f"{found.items_with_facts:,} items have some"],
    ]


def _show_partition(partition: "Partition", library: object) -> None:
    def row(method: str, report: Mapping[str, float]) -> list[str]:
        figures = defaultdict(lambda: math.nan, report)  # a manifest from elsewhere may lack some
        halos = [
            f"{figures[f'{name}_mean']:,.0f} / {figures[f'{name}_max']:,.0f}"
            for name in ("halo_rows", "item_halo_rows")
        ]
        balances = [f"{figures[f'{name}_balance']:.3f}" for name in ("users", "items", "edges")]
        if has_links:
            balances += [f"{figures['cut_links_share']:.1%}", f"{figures['further_balance']:.3f}"]
        return [method, f"{figures['cut_edges']:,.0f}", f"{figures['cut_share']:.1%}", *halos, *balances]

    has_links = any("cut_links_share" in report for report in partition.report.values())

    columns = [
        "method", "cut edges", "share", "halo rows (mean / max)", "of them items", "users balance", "items", "edges",
        *(["cut facts", "entities balance"] if has_links else []),
    ]  # fmt: skip
    print_table(
        f"{partition.num_parts} parts by {library or partition.method}; balance is the largest part over the mean",
        columns,
        [row(method, report) for method, report in partition.report.items()],
    )
