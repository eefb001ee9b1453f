"""What an import tells its user."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from diffmm_dist.errors import UserError

NO_VALIDATION = "the validation split is empty; training will need eval.protocol=published"


@dataclass(frozen=True)
class ImportReport:
    """What an import found, for the user to read.

    Attributes:
        missing: files that the source does not have and that were left out.
        notes: one sentence for each oddity of the data and for everything that was dropped.
    """

    missing: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


class Mistakes(list[str]):
    """Sentences about what is wrong with options and files, to be told together."""

    @contextmanager
    def collected(self) -> Iterator[None]:
        """Keep the sentence of a ``UserError`` and go on behind the block."""
        try:
            yield
        except UserError as error:
            self.append(str(error))

    def check(self) -> None:
        """Raise a ``UserError`` with all sentences if there are any."""
        if self:
            raise UserError("; ".join(dict.fromkeys(self)))
