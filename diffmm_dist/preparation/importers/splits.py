"""How interactions are divided into train, valid and test: the rules, and their SQL over the import's database."""

from dataclasses import dataclass
from typing import Literal

SplitMethod = Literal["random", "leave-last-out", "time", "column"]
SPLIT_METHODS: tuple[SplitMethod, ...] = ("random", "leave-last-out", "time", "column")


@dataclass(frozen=True)
class SplitRule:
    """How interactions are divided into train, valid and test.

    Attributes:
        method: ``random`` takes a share of every user's interactions; ``leave-last-out`` each user's last for test and
            the one before for valid; ``time`` cuts all interactions at two times; ``column`` reads a column.
        valid_share: part of the interactions for valid, with random and time.
        test_share: the same for test.
        values: what the column holds for train, valid and test.
        seed: of random, and of leave-last-out where times are equal.
    """

    method: SplitMethod = "random"
    valid_share: float = 0.1
    test_share: float = 0.1
    values: tuple[str, ...] = ("train", "valid", "test")
    seed: int = 7

    @property
    def by_time(self) -> bool:
        """Whether every interaction must have a time."""
        return self.method in ("leave-last-out", "time")


def split_query(rule: SplitRule) -> str:
    """Return the query that makes the table ``divided`` (user, item, split, tied) of ``pairs``."""
    return {"random": _random_query, "leave-last-out": _leave_last_query, "time": _time_query}[rule.method](rule)


def _by_hash(rule: SplitRule) -> str:
    """An order that has nothing to do with the ids and that the seed decides."""
    return f"md5_number_lower(concat_ws('/', '{rule.seed}', user, item)), item"


def _random_query(rule: SplitRule) -> str:
    """A share of every user's interactions in an order that the seed decides; one stays in train."""
    test = f"least(round(size * {rule.test_share}), size - 1)"
    return (
        f"create table divided as select user, item, false as tied, case when rank <= {test} then 2 "
        f"when rank <= {test} + round(size * {rule.valid_share}) and rank < size then 1 else 0 end as split from ("
        f"select user, item, row_number() over (partition by user order by {_by_hash(rule)}) as rank, "
        f"count(*) over (partition by user) as size from pairs)"
    )


def _leave_last_query(rule: SplitRule) -> str:
    """The last for test and the one before for valid, of users with three or more; equal times in a random order.

    By item id instead, items with large ids would be tested and those with small ones learnt, or the reverse. Only
    what is as late as a user's third last is ranked, which is little where times differ.
    """
    return (
        f"create table divided as with late as ("
        f"select user, count(*) as size, list_min(max(timestamp, 3)) as third from pairs group by user) "
        f"select user, item, false as tied, 0 as split from pairs join late using (user) where timestamp < third "
        f"union all select user, item, timestamp is not distinct from next as tied, "
        f"case when size < 3 or rank > 2 then 0 when rank = 2 then 1 else 2 end as split from ("
        f"select user, item, size, timestamp, row_number() over ordered as rank, lead(timestamp) over ordered as next "
        f"from pairs join late using (user) where timestamp >= third "
        f"window ordered as (partition by user order by timestamp desc, {_by_hash(rule)}))"
    )


def _time_query(rule: SplitRule) -> str:
    """Everything after two moments; rows of the same moment stay together."""
    first, second = 1 - rule.valid_share - rule.test_share, 1 - rule.test_share
    return (
        f"create table divided as select user, item, false as tied, "
        f"case when timestamp > cut[2] then 2 when timestamp > cut[1] then 1 else 0 end as split "
        f"from pairs, (select quantile_disc(timestamp, [{first}, {second}]) as cut from pairs)"
    )
