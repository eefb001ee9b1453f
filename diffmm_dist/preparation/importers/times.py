"""How a column of texts is read as times, in the SQL of the import's database: one way for the whole column.

Each way is an expression over the column ``timestamp`` that is null where a text does not fit. None loses order: whole
numbers stay whole, decimals are decimals, and ISO 8601 becomes a count of nanoseconds.
"""

from dataclasses import dataclass

# day, clock, fraction of a second, and the zone's sign and hours, and minutes
_ISO = (
    r"([0-9]{4}-[0-9]{2}-[0-9]{2})(?:[T ]([0-9]{2}:[0-9]{2}(?::[0-9]{2})?)(?:[.,]([0-9]{1,9}))?"
    r" ?(?:Z|([+-][0-9]{2})(?::?([0-9]{2}))?)?)?"
)
_ISO_ZONE = r".*[T ][0-9:.,]+ ?(Z|[+-][0-9:]+)"


@dataclass(frozen=True)
class TimeReading:
    """One way to read a column of texts as times.

    Attributes:
        words: what the texts are, for an error.
        value: the SQL expression.
    """

    words: str
    value: str


def time_readings(timestamp_format: str | None) -> list[TimeReading]:
    """Return the ways to try, the first that fits all texts being the one."""
    if timestamp_format is not None:
        return [TimeReading(f"of the form {timestamp_format}", f"try_strptime(timestamp, {quoted(timestamp_format)})")]
    return [
        TimeReading("whole numbers", _where("[+-]?[0-9]+", "try_cast(timestamp as bigint)")),
        TimeReading("numbers", _where("[+-]?[0-9]{1,28}([.][0-9]{1,10})?", "try_cast(timestamp as decimal(38, 10))")),
        TimeReading("numbers", _where("[+-]?[0-9.]+([eE][+-]?[0-9]+)?", "try_cast(timestamp as double)")),
        TimeReading("times of ISO 8601", _where(_ISO, _iso_nanoseconds())),
    ]


def mixed_zones() -> str:
    """Return the SQL condition that some ISO times have a zone and others have none."""
    zoned = f"count(*) filter (where regexp_full_match(timestamp, '{_ISO_ZONE}'))"
    return f"{zoned} > 0 and {zoned} < count(timestamp)"


def quoted(text: str) -> str:
    """Return a text as SQL writes it."""
    return "'" + text.replace("'", "''") + "'"


def _where(pattern: str, value: str) -> str:
    return f"case when regexp_full_match(timestamp, '{pattern}') then {value} end"


def _iso_nanoseconds() -> str:
    def part(number: int, default: str) -> str:
        return f"coalesce(nullif(regexp_extract(timestamp, '{_ISO}', {number}), ''), '{default}')"

    moment = f"epoch_us(try_cast({part(1, '')} || ' ' || {part(2, '00:00')} as timestamp))::hugeint * 1000"
    fraction = f"rpad({part(3, '0')}, 9, '0')::bigint"
    hours, minutes = f"{part(4, '+00')}::bigint", f"{part(5, '00')}::bigint"
    offset = f"(abs({hours}) * 60 + {minutes}) * if({part(4, '+00')} like '-%', -1, 1)"
    return f"{moment} + {fraction} - ({offset})::hugeint * 60000000000"
