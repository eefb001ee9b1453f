"""What features are to be made of what, and by which model."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, get_args

from diffmm_dist.errors import closest
from diffmm_dist.preparation.importers.table_formats import TextOptions

Kind = Literal["images", "texts", "audio"]
IdFrom = Literal["name", "folder"]
Device = Literal["auto", "cpu", "cuda"]
FEATURES = "features"  # the column of vectors
_LARGEST_BATCH = 65_536
_LONGEST_SECONDS = 3600.0


@dataclass(frozen=True)
class ContentRequest:
    """What to make.

    Attributes:
        kind: of the content.
        source: a folder of files, or a table of texts.
        model: a local folder, or a name on the Hugging Face hub.
        id_column: of the table of texts or ``ids``, and of what is written.
        text_columns: whose texts are put together, for texts.
        ids: table that says which item each file belongs to; None for what ``id_from`` says.
        file_column: its column of paths within the folder.
        id_from: what an item's id is without such a table: its file's name without ending, or the folder around it.
        prompt: put before every text, as some models want it.
        batch_size: contents that go through the model at once.
        device: where it runs.
        max_seconds: of each sound, from its beginning, that count.
        skip_damaged: leave out what cannot be read or is empty, and count it, instead of refusing.
        text_ids: ids are text, whatever they look like.
        delimiter: between the columns of CSV files, None for what their ending says.
        encoding: of CSV files.
    """

    kind: Kind
    source: str
    model: str
    id_column: str = "item_id"
    text_columns: tuple[str, ...] = ()
    ids: str | None = None
    file_column: str = "file"
    id_from: IdFrom = "name"
    prompt: str = ""
    batch_size: int = 32
    device: Device = "auto"
    max_seconds: float = 300.0
    skip_damaged: bool = False
    text_ids: bool = False
    delimiter: str | None = None
    encoding: str = "utf-8"

    @property
    def text(self) -> TextOptions:
        """How CSV files are written."""
        return TextOptions(self.delimiter, self.encoding)

    def mistakes(self) -> Iterator[str]:
        """Yield what is wrong with it, whatever the files hold."""
        for option, value, known in (
            ("--id-from", self.id_from, get_args(IdFrom)), ("--device", self.device, get_args(Device)),
        ):  # fmt: skip
            if value not in known:
                yield f"{option} {value} is none of {', '.join(known)}{closest(value, list(known))}"
        of_texts = self.kind == "texts"
        problems = [
            (of_texts and not self.text_columns, "--texts needs --text, the names of its columns of texts"),
            (not of_texts and bool(self.text_columns), "--text belongs to --texts, which is not given"),
            (not of_texts and bool(self.prompt), "--prompt belongs to --texts, which is not given"),
            (of_texts and self.ids is not None, "--ids belongs to --images and --audio; a table of texts has its own"),
            (self.ids is not None and self.id_from != "name", "--ids and --id-from both say what ids are; give one"),
            (self.id_column == FEATURES, f"--id {FEATURES} is what the column of vectors is called; rename the column"),
            (self.id_column in self.text_columns, f"--id and --text both name column '{self.id_column}'"),
            (self.ids is not None and self.id_column == self.file_column,
             f"--id and --file both name column '{self.id_column}'; each needs its own"),
            (len(set(self.text_columns)) < len(self.text_columns), "--text names a column twice"),
            (not 1 <= self.batch_size <= _LARGEST_BATCH, f"--batch-size must be from 1 to {_LARGEST_BATCH:,}"),
            (not (math.isfinite(self.max_seconds) and 1 <= self.max_seconds <= _LONGEST_SECONDS),
             f"--max-seconds must be from 1 to {_LONGEST_SECONDS:,.0f}"),
        ]  # fmt: skip
        yield from (sentence for is_wrong, sentence in problems if is_wrong)

    def settings(self) -> dict[str, str | int | float]:
        """Return what the values of the features depend on, beside the model and the contents."""
        settings: dict[str, str | int | float] = {"kind": self.kind, "batch_size": self.batch_size}
        if self.kind == "texts":
            settings["prompt"] = self.prompt
        if self.kind == "audio":
            settings["max_seconds"] = self.max_seconds
        return settings
