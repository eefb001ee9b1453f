"""Folders of the MMRec toolbox: a tab-separated .inter file with a column of splits, and NumPy features by item."""

from diffmm_dist import storage
from diffmm_dist.errors import UserError
from diffmm_dist.preparation.importers.arrow_tables import Table
from diffmm_dist.preparation.importers.cleaning import InteractionColumns
from diffmm_dist.preparation.importers.features import FeatureSource
from diffmm_dist.preparation.importers.published import FEATURES
from diffmm_dist.preparation.importers.report import ImportReport
from diffmm_dist.preparation.importers.splits import SplitRule
from diffmm_dist.preparation.importers.tables import TableImport, import_tables

_SPLIT_COLUMN = "x_label"
_SPLIT_VALUES = ("0", "1", "2")


def import_mmrec(folder: str, out: str, *, force: bool = False) -> ImportReport:
    """Convert an MMRec folder into a dataset.

    The first two columns of the .inter file are users and items; x_label is 0, 1 or 2 for train, valid and test. Row n
    of image_feat.npy, text_feat.npy and audio_feat.npy belongs to item n. Every item of the features is kept.

    Args:
        folder: path or an address.
        out: the dataset to write.
        force: replace a dataset that is already there.

    Raises:
        UserError: a file is missing, damaged, or does not fit the others.
    """
    names = storage.list_names(folder)
    tables = [name for name in names if name.endswith(".inter")]
    if len(tables) != 1:
        raise UserError(f"{folder} holds {len(tables)} .inter files; give the folder of one MMRec dataset")
    interactions = storage.join(folder, tables[0])
    columns = Table(interactions).schema.names
    split = next((name for name in columns if name.split(":")[0] == _SPLIT_COLUMN), None)
    if len(columns) < 3 or split not in columns[2:]:
        raise UserError(
            f"{interactions} has columns {', '.join(columns)}; user, item and {_SPLIT_COLUMN} are needed in this "
            "order, separated by tabs"
        )
    present = {modality: name for modality, name in FEATURES.items() if name in names}
    settings = TableImport(
        interactions=interactions,
        columns=InteractionColumns(columns[0], columns[1], split=split),
        rule=SplitRule("column", values=_SPLIT_VALUES),
        features=tuple(
            FeatureSource(modality, storage.join(folder, name), item=columns[1]) for modality, name in present.items()
        ),
        all_items=bool(present),
    )
    report = import_tables(settings, out, importer="mmrec", force=force)
    return ImportReport(tuple(name for name in FEATURES.values() if name not in names), report.notes)
