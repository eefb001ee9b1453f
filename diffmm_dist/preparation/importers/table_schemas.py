"""One schema for the files of a table, whose writers chose types by what each of them held."""

from collections.abc import Iterable
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.compute as pc

from diffmm_dist.errors import UserError
from diffmm_dist.preparation.importers.columns import plain, plain_type

MOST_COLUMNS = 1 << 14  # with those inside of others


@dataclass
class UnifiedSchema:
    """The columns of several files, each with a type that holds the values of all.

    Attributes:
        fields: by name.
        conflicts: of the columns for which there is no such type, what stands where.
    """

    fields: dict[str, pa.Field] = field(default_factory=dict)
    conflicts: dict[str, str] = field(default_factory=dict)
    _first: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, schemas: Iterable[tuple[str, pa.Schema]]) -> "UnifiedSchema":
        """Return the schema of files, given as (where, schema)."""
        unified = cls()
        for where, schema in schemas:
            unified.add(where, schema)
        return unified

    def add(self, where: str, schema: pa.Schema) -> None:
        """Take in the schema of one more file, or of another part of one."""
        for column in schema:
            self._add(where, column.with_type(plain_type(column.type)).with_nullable(True))

    def _add(self, where: str, column: pa.Field) -> None:
        known = self.fields.setdefault(column.name, column)
        if known is column or pa.types.is_null(known.type):
            self._first[column.name] = where
        try:
            joined = _joined(known, column)
        except pa.ArrowException:
            self.conflicts.setdefault(
                column.name,
                f"column '{column.name}' holds {known.type} in {self._first[column.name]} and {column.type} in {where}",
            )
            return
        self.fields[column.name] = joined

    @property
    def schema(self) -> pa.Schema:
        """All columns; one in conflict has the type that came first."""
        return pa.schema(list(self.fields.values()))

    def check(self, columns: Iterable[str]) -> None:
        """Raise a ``UserError`` for every one of some columns that is in conflict."""
        found = [self.conflicts[name] for name in columns if name in self.conflicts]
        if found:
            raise UserError(f"{'; '.join(found)}; convert them to one type")


def _joined(first: pa.Field, second: pa.Field) -> pa.Field:
    if pa.types.is_date(first.type) and pa.types.is_timestamp(second.type):
        return second
    if pa.types.is_date(second.type) and pa.types.is_timestamp(first.type):
        return first
    return pa.unify_schemas([pa.schema([first]), pa.schema([second])], promote_options="permissive").field(0)


def converted(column: pa.Array, kind: pa.DataType) -> pa.Array:
    """Return a column with the type of the unified schema.

    Raises:
        pa.ArrowException: a value does not fit.
    """
    values = plain(column)
    return values if values.type.equals(kind) else pc.cast(values, kind)


def num_fields(schema: pa.Schema) -> int:
    """Return how many columns there are, those inside of others counted too."""
    count, level = 0, [field.type for field in schema]
    while level:
        count += len(level)
        level = [kind.field(index).type for kind in level for index in range(kind.num_fields)]
    return count


def check_width(where: str, num_columns: int) -> None:
    """Raise a ``UserError`` about a table with more columns than any has."""
    if num_columns > MOST_COLUMNS:
        raise UserError(f"{where} has more than {MOST_COLUMNS:,} columns; give a table of lists, or of fewer columns")
