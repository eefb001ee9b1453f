"""What an import tells its user."""

from dataclasses import dataclass


@dataclass(frozen=True)
class ImportReport:
    """What an import found, for the user to read.

    Attributes:
        missing: files that the source does not have and that were left out.
        notes: one sentence for each oddity of the data and for everything that was dropped.
    """

    missing: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
