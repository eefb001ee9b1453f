"""What a user imports: the commands `prepare tables`, `train`, `evaluate` and `export` as functions (docs/api.md)."""

import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from typing_extensions import TypedDict, Unpack

from diffmm_dist.bundles.recommender import Filter, Recommendations, Recommender
from diffmm_dist.errors import UserError, closest
from diffmm_dist.places import as_text, settle
from diffmm_dist.words import shown

if TYPE_CHECKING:
    from diffmm_dist.runs.run_records import Result

Place = str | os.PathLike[str]
__all__ = ["Filter", "Recommendations", "Recommender", "UserError", "evaluate", "export", "prepare", "train"]


class Options(TypedDict, total=False):
    """What ``prepare`` may be told beyond the tables; all of it has the defaults of the command.

    Attributes:
        user: column of user ids.
        item: column of item ids, here and in the tables of features.
        timestamp: column of times.
        rating: column of ratings.
        min_rating: the lowest rating that counts.
        split: how to divide the interactions into training, validation and test.
        split_column: column that says train, valid or test, with ``split="column"``.
        valid_share: for validation, with random and time.
        test_share: for test, with random and time.
        k_core: how many interactions every user and item must have.
        without_features: what to do about items without features.
        all_items: keep items that have features and no interaction.
        seed: of the random split, and of ties.
    """

    user: str
    item: str
    timestamp: str
    rating: str
    min_rating: float
    split: Literal["random", "leave-last-out", "time", "column"]
    split_column: str
    valid_share: float
    test_share: float
    k_core: int
    without_features: Literal["error", "zero", "drop"]
    all_items: bool
    seed: int


def prepare(
    interactions: Any,
    out: Place,
    *,
    features: Mapping[str, Any] | None = None,
    force: bool = False,
    **options: Unpack[Options],
) -> tuple[str, ...]:
    """Make a dataset of a table of interactions, as `prepare tables` does.

    Args:
        interactions: a table in memory (pandas, polars, pyarrow, or a mapping of columns), or the place of one: a file,
            a folder or an address such as s3://BUCKET/events. Its ids are in the columns ``user`` and ``item``, unless
            the options name others.
        out: where the dataset is written, a folder or an address.
        features: by modality a table with the column of items and columns of numbers, or one of lists; or the place of
            such a table, or of a .npy file.
        force: replace the dataset that is there.
        options: names of columns, how to split, what to drop.

    Returns:
        A sentence about each oddity of the data and everything that was dropped.

    Raises:
        UserError: naming everything that is wrong.
    """
    from diffmm_dist.preparation.importers.cleaning import InteractionColumns
    from diffmm_dist.preparation.importers.features import FeatureSource
    from diffmm_dist.preparation.importers.splits import SplitRule
    from diffmm_dist.preparation.importers.tables import TableImport, import_tables

    _check_options(options)
    given: dict[str, Any] = {"user": "user", "item": "item", **options}
    columns = {name: given.pop(name, None) for name in ("user", "item", "timestamp", "rating")}
    rule: dict[str, Any] = {name: given.pop(name) for name in ("valid_share", "test_share", "seed") if name in given}
    if "split" in given:
        rule["method"] = given.pop("split")
    tables = features or {}
    with _as_places([("interactions", interactions), *tables.items()]) as (place, *of_features):
        settings = TableImport(
            place,
            InteractionColumns(**columns, split=given.pop("split_column", None)),
            SplitRule(**rule),
            tuple(FeatureSource(name, one, columns["item"]) for name, one in zip(tables, of_features, strict=True)),
            **given,
        )
        return import_tables(settings, settle(as_text(out), to_write=True), force=force).notes


def train(
    config: Place | None = None, *settings: str, data: Place | None = None, run: Place | None = None, **sections: Any
) -> "Result":
    """Train a model, or go on training it, as `train` does: the same call again resumes the run.

    Args:
        config: a YAML file; the defaults without one.
        settings: as on the command line, such as ``"train.epochs=20"``.
        data: place of the dataset; the setting data.path.
        run: place of the run folder; the setting run.path.
        sections: further settings as mappings, such as ``model={"embedding_dim": 32}, train={"epochs": 20}``; they win
            over the file and over ``settings``.

    Returns:
        What result.json holds: ``valid`` and ``test`` figures of the best epoch, seconds, peak memory, settings.

    Raises:
        UserError: naming every mistake in the configuration at once, or what else is wrong.
        StoppedError: Ctrl-C; a checkpoint is saved.
    """
    from diffmm_dist.launch.job import run_job
    from diffmm_dist.runs.config import load_config

    given: dict[str, Any] = dict(sections)
    for section, value in (("data", data), ("run", run)):
        if value is not None:
            given[section] = {**given.get(section, {}), "path": as_text(value)}
    resolved = load_config(None if config is None else as_text(config), [*settings, *_as_settings(given)])
    return run_job(resolved)


def evaluate(
    run: Place, *, split: Literal["valid", "test"] = "test", k: int | Sequence[int] = (10, 20, 50)
) -> dict[str, float]:
    """Return the figures of a run's best epoch at any cut-offs, such as ``recall@20``, as `evaluate` does.

    Raises:
        UserError: there is no finished run, or it has nothing to be evaluated on.
    """
    from diffmm_dist.training.trained import load_trained

    if split not in ("valid", "test"):
        raise UserError(f"split is {shown(split)}: it must be valid or test")
    cutoffs = [k] if isinstance(k, int) else list(k)
    if not cutoffs or not all(isinstance(one, int) and not isinstance(one, bool) and one > 0 for one in cutoffs):
        raise UserError(f"k is {shown(k)}: it must be whole numbers of at least 1, such as [10, 20, 50]")
    return load_trained(settle(as_text(run))).figures(split, sorted(set(cutoffs)))


def export(run: Place, out: Place, *, force: bool = False) -> Recommender:
    """Write the best epoch of a run as a bundle, as `export` does, and return its recommender.

    Raises:
        UserError: there is no such run, or the place is taken or cannot be written.
    """
    from diffmm_dist.exports.bundle import export_run

    place = settle(as_text(out), to_write=True)
    export_run(settle(as_text(run)), place, force=force)
    return Recommender.load(place)


def _check_options(options: Mapping[str, Any]) -> None:
    known = list(Options.__annotations__)
    for name in options:
        if name not in known:
            raise UserError(f"prepare has no option '{name}'{closest(name, known)}; it has {', '.join(known)}")


def _as_settings(tree: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Yield the leaves of a tree of settings as ``section.key=value``."""
    import yaml

    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _as_settings(value, f"{prefix}{key}.")
        else:
            plain = value.item() if isinstance(value, np.generic) else value
            plain = list(plain) if isinstance(plain, tuple) else plain
            text = yaml.safe_dump(plain, default_flow_style=True, width=1e9)
            yield f"{prefix}{key}={text.strip().removesuffix('...').strip()}"


@contextmanager
def _as_places(tables: Sequence[tuple[str, Any]]) -> Iterator[list[str]]:
    """Yield where each table is; one in memory is written to a folder that goes with the block.

    Errors call such a table by its name, not by a file that the user never saw.
    """
    with tempfile.TemporaryDirectory(prefix="diffmm_dist-") as folder:
        places, names = [], {}
        for number, (name, table) in enumerate(tables):
            if isinstance(table, str | os.PathLike):
                places.append(as_text(table))
            else:
                places.append(os.path.join(folder, f"{number}.parquet"))
                names[places[-1]] = f"the table '{name}'"
                pq.write_table(_as_arrow(name, table), places[-1])
        try:
            yield places
        except UserError as error:
            sentence = str(error)
            for place, called in names.items():
                sentence = sentence.replace(place, called)
            raise type(error)(sentence) from error


def _as_arrow(name: str, table: Any) -> pa.Table:
    """Return a table of any library."""
    try:
        if isinstance(table, pa.Table):
            return table
        if hasattr(table, "to_arrow"):  # polars
            return table.to_arrow()
        if hasattr(table, "iloc"):  # pandas
            return pa.Table.from_pandas(table, preserve_index=False)
        return pa.table(table)
    except (TypeError, ValueError, pa.ArrowException) as error:
        raise UserError(f"'{name}' is {shown(type(table).__name__)}: give a table, or the place of one") from error
