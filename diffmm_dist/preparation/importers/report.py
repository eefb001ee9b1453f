"""What an import tells its user."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from diffmm_dist.errors import TryAgainError, UserError, may_pass

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

    def __init__(self, sentences: Iterable[str] = ()) -> None:
        super().__init__(sentences)
        self._num_passing = 0

    @contextmanager
    def collected(self) -> Iterator[None]:
        """Keep the sentence of a ``UserError`` and go on behind the block."""
        try:
            yield
        except UserError as error:
            self.append(str(error))
            self._num_passing += may_pass(error)

    def check(self) -> None:
        """Raise a ``UserError`` with all sentences if there are any."""
        if self:
            kind = TryAgainError if self._num_passing == len(self) else UserError
            raise kind("; ".join(dict.fromkeys(self)))
