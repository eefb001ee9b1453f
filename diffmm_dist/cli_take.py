"""The commands that ask a bundle: recommendations, similar items and users, explanations."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from diffmm_dist.cli_options import Json, file_to_write, one_of, place
from diffmm_dist.errors import UserError
from diffmm_dist.monitoring.log import logger, print_table, say, say_json
from diffmm_dist.places import settle

if TYPE_CHECKING:
    import pyarrow as pa

    from diffmm_dist.bundles.ranking import Rule
    from diffmm_dist.bundles.recommender import Kind, Recommender

Bundle = Annotated[str, typer.Argument(help="A bundle written by `export`.", callback=place)]
ListOut = Annotated[
    str | None,
    typer.Option(
        help="File to write, in the format of its ending: .csv, .parquet, .arrow, .feather or .jsonl; a table is "
        "printed without it.",
        callback=file_to_write,
    ),
]
RawIds = Annotated[bool, typer.Option("--raw-ids", help="No apostrophe in .csv before ids such as =1.")]
Users = Annotated[str | None, typer.Option(help="Original user ids, comma-separated.")]
UsersFrom = Annotated[
    str | None,
    typer.Option(
        help="File with an id on each line, or a table with a column `user`; - is standard input.", callback=place
    ),
]
History = Annotated[
    str | None,
    typer.Option(help="Table with columns `user` and `item`: users who are only these items.", callback=place),
]
ItemFile = typer.Option(help="File of the only items to recommend, as of --users-from.", callback=place)
Excluded = typer.Option(help="File of items not to recommend, as of --users-from.", callback=place)
Categories = Annotated[
    str | None, typer.Option(help="Table with columns `item` and `category`, for --at-most.", callback=place)
]
NewItems = Annotated[
    list[str] | None,
    typer.Option(help="MODALITY=TABLE with a column `item`: features of new items, of every modality; repeatable."),
]
OnlyNew = Annotated[bool, typer.Option("--only-cold", help="Recommend the new items of --cold alone.")]
Ranking = Annotated[str, typer.Option(help="exact, or faiss: the index that `export --index` has built.")]


def recommend(
    bundle: Bundle,
    users: Users = None,
    users_from: UsersFrom = None,
    every_user: Annotated[bool, typer.Option("--all", help="Recommend to every user.")] = False,
    fold_in: History = None,
    k: Annotated[int, typer.Option(min=1, help="Recommendations per user.")] = 20,
    include_seen: Annotated[bool, typer.Option("--include-seen", help="Recommend known items too.")] = False,
    items: Annotated[str | None, ItemFile] = None,
    exclude: Annotated[str | None, Excluded] = None,
    categories: Categories = None,
    at_most: Annotated[int | None, typer.Option(min=1, help="Items of one category in a list.")] = None,
    cold: NewItems = None,
    only_cold: OnlyNew = False,
    index: Ranking = "exact",
    raw_ids: RawIds = False,
    out: ListOut = None,
    as_json: Json = False,
) -> None:
    """Recommend items to known users, or to users who are only lists of items, in original ids."""
    if (users is not None) + (users_from is not None) + every_user + (fold_in is not None) != 1:
        raise UserError(
            "give either --users ID,ID or --all, or --users-from FILE or --fold-in FILE, and one of them only"
        )
    if every_user and out is None and not as_json:
        raise UserError("--all needs --out FILE, such as recs.parquet or recs.csv")
    if (categories is None) != (at_most is None):
        raise UserError("--categories FILE and --at-most N belong together; give both or neither")
    from diffmm_dist.bundles.asked import read_ids

    places = _new_places(cold, only_cold)
    sources = [users_from, fold_in, items, exclude, categories, *places.values()]
    recommender, new = _with_new_items(_loaded(bundle, out, sources, index, as_json=as_json), places, only_cold)
    rule = _rule(recommender, items, exclude, categories, at_most, only=new)
    options: dict[str, Any] = {"k": k, "include_seen": include_seen, "rule": rule}
    folded: pa.Array | None = None
    if fold_in is not None:
        tables, folded = _folded(recommender, fold_in, options)
        count = len(folded)
    else:
        import numpy as np

        from diffmm_dist.bundles.tables import recommend as recommend_blocks

        rows = np.arange(len(recommender.users))
        if not every_user:
            asked = _ids(users, "--users") if users is not None else read_ids(str(users_from), recommender.users)
            rows = recommender.users.rows_once(asked)
        tables, count = recommend_blocks(recommender, rows, **options), len(rows)
    what = f"recommendations to {count:,} users"
    _give(tables, recommender, out, raw_ids, what, asked=folded, as_json=as_json)


def similar(
    bundle: Bundle,
    items: Annotated[str | None, typer.Option(help="Original item ids, comma-separated.")] = None,
    users: Users = None,
    items_from: Annotated[
        str | None, typer.Option(help="File of item ids, as of `recommend --users-from`.", callback=place)
    ] = None,
    users_from: Annotated[
        str | None, typer.Option(help="File of user ids, as of `recommend --users-from`.", callback=place)
    ] = None,
    k: Annotated[int, typer.Option(min=1, help="How many for each.")] = 20,
    raw_ids: RawIds = False,
    out: ListOut = None,
    as_json: Json = False,
) -> None:
    """Show the items, or the users, whose embeddings are the most alike by their cosine, in original ids."""
    if sum(given is not None for given in (items, users, items_from, users_from)) != 1:
        raise UserError("give one of --items ID,ID and --users ID,ID and --items-from FILE and --users-from FILE")
    from diffmm_dist.bundles.asked import read_ids
    from diffmm_dist.bundles.tables import similar as similar_blocks

    recommender = _loaded(bundle, out, [items_from, users_from], as_json=as_json)
    kind: Kind = "items" if users is None and users_from is None else "users"
    known = recommender.ids(kind)
    file = items_from or users_from
    asked = read_ids(file, known) if file is not None else _ids(str(users if items is None else items), f"--{kind}")
    rows = known.rows_once(asked)
    tables = similar_blocks(recommender, kind, rows, k=k)
    _give(tables, recommender, out, raw_ids, f"similar {kind} of {len(rows):,}", as_json=as_json)


def explain(
    bundle: Annotated[str, typer.Argument(help="A bundle of a model with a knowledge graph.", callback=place)],
    user: Annotated[str, typer.Option(help="The user's id.")],
    item: Annotated[str, typer.Option(help="The recommended item's id.")],
    paths: Annotated[int, typer.Option(min=1, max=50, help="How many paths to show.")] = 10,
    picture: Annotated[str | None, typer.Option(help="An .svg file to draw them in.")] = None,
) -> None:
    """Show the facts that lead from what a user knows to an item, those with the highest attention first."""
    from diffmm_dist.bundles.bundle import read_bundle
    from diffmm_dist.exports.explain import explain as explained
    from diffmm_dist.exports.explain import picture as drawn
    from diffmm_dist.exports.knowledge import read_knowledge
    from diffmm_dist.storage import check_apart, write_bytes

    if picture is not None:
        if not picture.lower().endswith(".svg"):
            raise UserError(f"--picture {picture} must end in .svg, which is what is drawn")
        check_apart(picture, [bundle])
    facts = read_knowledge(bundle)
    found = explained(read_bundle(bundle), facts, user, item, most=paths)
    title = f"user {user}, item {item}: score {found.score:.4f}, {found.num_paths:,} paths from {found.num_known} items"
    rows = [
        [f"{path.attention:.4f}", path.known, path.shared or "", *map(str, path.steps), *[""] * (2 - len(path.steps))]
        for path in found.paths
    ]
    print_table(title, ["attention", "known item", "shared entity", "item's fact", "known item's fact"], rows)
    if not rows:
        say("no fact of the item leads to anything that the user knows")
    if picture is not None:
        write_bytes(picture, drawn(found).encode())
        say(f"{picture}: drawn")


def _loaded(
    bundle: str, out: str | None, sources: list[str | None], index: str = "exact", *, as_json: bool
) -> "Recommender":
    """Return a bundle to ask, once it is sure that its answer can be written and is no place that is read."""
    if out is not None and as_json:
        raise UserError("--json prints what --out FILE would hold; give one of them")
    from diffmm_dist.bundles.recommender import Recommender
    from diffmm_dist.bundles.tables import file_format
    from diffmm_dist.storage import check_apart

    if out is not None:
        file_format(out)
        check_apart(out, [bundle, *(source for source in sources if source is not None)])
    kinds: tuple[Literal["exact", "faiss"], ...] = ("exact", "faiss")
    return Recommender.load(bundle, index=one_of(index, kinds, "--index"))


def _new_places(cold: list[str] | None, only: bool) -> dict[str, str]:
    """Return where the features of new items are, by modality."""
    if cold is None and only:
        raise UserError("--only-cold needs --cold MODALITY=TABLE, the features of the new items")
    places: dict[str, str] = {}
    for text in cold or []:
        name, _, table = text.partition("=")
        if not (name and table) or name in places:
            raise UserError(f"--cold {text} must be MODALITY=TABLE, each modality once, such as visual=new.parquet")
        places[name] = settle(table)
    return places


def _with_new_items(
    recommender: "Recommender", places: dict[str, str], only: bool
) -> tuple["Recommender", "pa.Array | None"]:
    """Return a recommender that has further items, and the ids of these if they are to be recommended alone."""
    if not places:
        return recommender, None
    from diffmm_dist.bundles.asked import read_new_items

    new = read_new_items(places, recommender.items)
    return recommender.cold_items(new.features, new.ids), new.ids if only else None


def _rule(
    recommender: "Recommender",
    items: str | None,
    exclude: str | None,
    categories: str | None,
    at_most: int | None,
    *,
    only: "pa.Array | None",
) -> "Rule | None":
    """Return what may be recommended, from the files that say so, or these items only."""
    from diffmm_dist.bundles.asked import read_categories, read_ids
    from diffmm_dist.bundles.recommender import Filter

    if only is None and items is None and exclude is None and categories is None:
        return None
    if only is not None and items is not None:
        raise UserError("--only-cold and --items both say which items alone to recommend; give one of them")
    known = recommender.items
    return recommender.rule(
        Filter(
            allowed=only if items is None else read_ids(items, known),
            excluded=None if exclude is None else read_ids(exclude, known),
            categories=None if categories is None else read_categories(categories, known),
            at_most=at_most or 1,
        )
    )


def _folded(recommender: "Recommender", place: str, options: dict[str, Any]) -> tuple[Iterator["pa.Table"], "pa.Array"]:
    """Return recommendations to users who are lists of items, and their ids; say what was left out."""
    from diffmm_dist.bundles.asked import read_histories
    from diffmm_dist.bundles.tables import fold_in

    histories = read_histories(place, recommender.items)
    if histories.num_unknown:
        empty = f"; {histories.num_empty:,} users have no other and get no list" if histories.num_empty else ""
        note = f"note: {histories.num_unknown:,} rows of {place} name items that are not in the bundle{empty}"
        logger.info("%s", note)
    return fold_in(recommender, histories, **options), histories.users


def _give(
    tables: Iterator["pa.Table"],
    recommender: "Recommender",
    out: str | None,
    raw_ids: bool,
    what: str,
    *,
    asked: "pa.Array | None" = None,
    as_json: bool,
) -> None:
    """Write tables to a file, or print them; who asks are the bundle's users unless others are given."""
    import pyarrow as pa

    from diffmm_dist.bundles.tables import file_format, num_formulas, write_recommendations

    if out is not None:
        count = write_recommendations(tables, out, raw_ids=raw_ids)
        say(f"{out}: {count:,} {what}")
        if not raw_ids and file_format(out) == "csv":
            users = recommender.users.values if asked is None else pa.chunked_array([asked])
            _say_formulas(num_formulas(users, recommender.items.values))
        return
    if as_json:
        for table in tables:
            for row in table.to_pylist():
                say_json(row)
        return
    names: list[str] = []
    cells = []
    for table in tables:
        names = table.schema.names
        for row in table.to_pylist():
            cells.append([f"{value:.4f}" if name == "score" else str(value) for name, value in row.items()])
    print_table("", names, cells)


def _say_formulas(count: int) -> None:
    if count:
        say(f"note: {count:,} ids look like formulas and have an apostrophe before them; --raw-ids leaves it out")


def _ids(text: str, option: str) -> list[str]:
    """Split comma-separated ids, each once."""
    ids = list(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    if not ids:
        raise UserError(f"{option} names no {option.strip('-s')}; give ids such as {option} 17,42")
    return ids
