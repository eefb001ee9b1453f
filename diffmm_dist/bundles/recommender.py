"""What a user of the package has of a bundle: recommendations, similar items and users, new users, new items."""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from diffmm_dist.bundles.bundle import Bundle, read_bundle
from diffmm_dist.bundles.content import ContentMap, read_content
from diffmm_dist.bundles.files import Floats, Ints
from diffmm_dist.bundles.folding import FoldIn
from diffmm_dist.bundles.ids import Ids, histories_of, is_one, named
from diffmm_dist.bundles.index import Index, read_index
from diffmm_dist.bundles.pairs import Pairs
from diffmm_dist.bundles.ranking import Lists, Rule, best, blocks_of
from diffmm_dist.bundles.rows import Rows
from diffmm_dist.errors import UserError
from diffmm_dist.places import as_text, settle

Kind = Literal["items", "users"]


class Recommendations(NamedTuple):
    """Lists in original ids, the best first.

    Attributes:
        ids: (n, k), whole numbers or texts; (k,) where one id, or one history, was asked for. Where some list is
            shorter than k, a masked array whose missing entries are masked.
        scores: float32 of the same shape, minus infinity where an entry is missing.
    """

    ids: npt.NDArray[Any]
    scores: Floats


@dataclass(frozen=True, eq=False)
class Filter:
    """Business rules for a list of items.

    Attributes:
        allowed: original ids of the only items that may be listed; all, if it is None.
        excluded: original ids of items that may not be.
        categories: the category of items, as a mapping or as a pair of columns (items, categories).
        at_most: how many items of one category a list may hold; items without a category count as none.
    """

    allowed: Any = None
    excluded: Any = None
    categories: Any = None
    at_most: int = 1


class Recommender:
    """A bundle that is asked: every method takes and gives original ids.

    Ids come as lists, numpy arrays, or columns of pandas, polars or pyarrow. Nothing here needs torch.

    Args:
        bundle: what was read.
        content: how features become embeddings, if the bundle knows.
        index: an approximate index of the items; they are ranked exactly without it.

    Attributes:
        bundle: what was read.
        users: original ids of users, and their rows.
        items: original ids of items, and their rows.
    """

    def __init__(self, bundle: Bundle, content: ContentMap | None = None, index: Index | None = None) -> None:
        self.bundle, self._content, self._index = bundle, content, index
        self._found_lengths: dict[Kind, Floats] = {}
        self.users, self.items = Ids(bundle.user_ids, "user"), Ids(bundle.item_ids, "item")

    @classmethod
    def load(cls, place: str | os.PathLike[str], *, index: Literal["exact", "faiss"] = "exact") -> "Recommender":
        """Read a bundle that `export` has written, a folder or an address such as s3://BUCKET/PREFIX.

        Every file is compared with its checksum. Embeddings on a local disk are mapped, not read into memory.

        Args:
            place: where it is.
            index: ``faiss`` searches the index that `export --index` has made, in which a list may miss an item.

        Raises:
            UserError: there is none, or it has no index.
            DamagedError: it is not what was exported.
        """
        if index not in ("exact", "faiss"):
            raise UserError(f"index is {index!r}: it must be exact or faiss")
        place = settle(as_text(place))
        bundle = read_bundle(place)
        found = read_index(place, bundle.marker, bundle.item_rows) if index == "faiss" else None
        return cls(bundle, read_content(place, bundle.marker), found)

    def recommend(
        self, users: Any, k: int = 20, *, exclude_seen: bool = True, filter: Filter | None = None
    ) -> Recommendations:
        """Return the best items for each user, by the inner product of the embeddings; ties by the item's row.

        Args:
            users: original ids, in any order, also several times.
            k: items in a list.
            exclude_seen: leave out what the user has seen in training or validation.
            filter: further rules.

        Raises:
            UserError: the bundle does not have such a user, or an item of the filter.
        """
        rows = self.users.rows(users)
        lists = self.lists(rows, k, exclude_seen=exclude_seen, rule=self.rule(filter))
        return _answered(self.items, lists, alone=is_one(users))

    def similar_items(self, items: Any, k: int = 20, *, filter: Filter | None = None) -> Recommendations:
        """Return the items whose embeddings point the most in the same direction, by their cosine, without itself."""
        lists = self.similar("items", self.items.rows(items), k, rule=self.rule(filter))
        return _answered(self.items, lists, alone=is_one(items))

    def similar_users(self, users: Any, k: int = 20) -> Recommendations:
        """Return the users whose embeddings point the most in the same direction, by their cosine, without itself."""
        lists = self.similar("users", self.users.rows(users), k)
        return _answered(self.users, lists, alone=is_one(users))

    def fold_in(
        self, items: Any, k: int = 20, *, exclude_seen: bool = True, filter: Filter | None = None
    ) -> Recommendations:
        """Return the best items for somebody who is only a list of items (docs/cold-start.md).

        Args:
            items: original ids of one history, or a list of such histories.
            k: items in a list.
            exclude_seen: leave out the items of the history.
            filter: further rules.

        Raises:
            UserError: the bundle does not have an item, or a history is empty.
        """
        items = list(items) if isinstance(items, Iterator) else items
        histories_given = histories_of(items)
        alone = histories_given is None
        columns = [self.items.rows(one) for one in ([items] if histories_given is None else histories_given)]
        if not all(map(len, columns)):
            raise UserError("a history holds no item, and nothing can be recommended from nothing; leave it out")
        lengths = [len(column) for column in columns]
        histories = Pairs.of(
            np.repeat(np.arange(len(columns)), lengths), np.concatenate([np.empty(0, np.int64), *columns]),
            num_rows=len(columns), num_items=len(self.items),
        )  # fmt: skip
        lists = self.folded(histories, k, exclude_seen=exclude_seen, rule=self.rule(filter))
        return _answered(self.items, lists, alone=alone)

    def cold_items(self, features: Any, ids: Any = None) -> "Recommender":
        """Return a recommender that has further items of which only the features are known (docs/cold-start.md).

        Args:
            features: an array (n, width) per modality by its name; the array alone where there is one modality.
            ids: original ids of the new items; ``cold_0``, ``cold_1``, ... if the ids are texts and none are given.

        Raises:
            UserError: the bundle has no features, or they are of other modalities or widths, or an id is taken.
        """
        if self._content is None:
            raise UserError("this bundle does not say how features become embeddings; export the run again, with it")
        rows = self._content.items(features)
        names = self._new_ids(ids, len(rows))
        bundle = self.bundle
        more = replace(
            bundle,
            item_ids=pa.chunked_array([*bundle.item_ids.chunks, names], bundle.item_ids.type),
            item_rows=bundle.item_rows.and_more(rows),
        )
        return Recommender(more, self._content)

    def ids(self, kind: Kind) -> Ids:
        """Return the original ids of items or of users."""
        return self.items if kind == "items" else self.users

    def rule(self, filter: Filter | None) -> Rule | None:
        """Return a filter in rows of items."""
        if filter is None:
            return None
        if not isinstance(filter, Filter):
            raise UserError(f"filter is {type(filter).__name__}: give a Filter, such as Filter(allowed=ids)")
        if isinstance(filter.at_most, bool) or not isinstance(filter.at_most, int | np.integer) or filter.at_most < 1:
            raise UserError(f"at_most is {filter.at_most!r}: it must be a whole number of at least 1")
        allowed = np.full(len(self.items), filter.allowed is None)
        if filter.allowed is not None:
            allowed[self.items.rows(filter.allowed)] = True
        if filter.excluded is not None:
            allowed[self.items.rows(filter.excluded)] = False
        return Rule(allowed, self._categories(filter.categories), filter.at_most)

    def lists(self, users: Ints, k: int, *, exclude_seen: bool, rule: Rule | None) -> Lists:
        """Return the best items of rows of users, as rows."""
        hidden = self.bundle.seen.take(users) if exclude_seen else None
        return self._ranked(self.bundle.user_rows.take(users), k, hidden, rule)

    def folded(self, histories: Pairs, k: int, *, exclude_seen: bool, rule: Rule | None) -> Lists:
        """Return the best items of histories, as rows."""
        return self._ranked(self._fold_in.users(histories), k, histories if exclude_seen else None, rule)

    def similar(self, kind: Kind, rows: Ints, k: int, *, rule: Rule | None = None) -> Lists:
        """Return what is the most alike to rows of items or of users, by the cosine, as rows."""
        _check_k(k)
        table, lengths = self._table(kind), self._lengths(kind)
        parts = []
        for block in blocks_of(len(rows), len(table)):
            themselves = Pairs(np.arange(block.stop - block.start + 1), rows[block])
            asked = table.take(rows[block]) / lengths[rows[block], None]
            parts.append(best(asked, table, k, hidden=themselves, rule=rule, lengths=lengths))
        return _joined(parts, min(k, len(table)))

    def _table(self, kind: Kind) -> Rows:
        return self.bundle.item_rows if kind == "items" else self.bundle.user_rows

    def _lengths(self, kind: Kind) -> Floats:
        """Return the lengths of all rows, 1 for a row of zeros."""
        if kind not in self._found_lengths:
            self._found_lengths[kind] = self._table(kind).lengths()
        return self._found_lengths[kind]

    @cached_property
    def _fold_in(self) -> FoldIn:
        return FoldIn(self.bundle.item_rows)

    def _ranked(self, asked: Floats, k: int, hidden: Pairs | None, rule: Rule | None) -> Lists:
        _check_k(k)
        parts = []
        for block in blocks_of(len(asked), len(self.items)):
            of_block = None if hidden is None else hidden.take(np.arange(block.start, block.stop))
            parts.append(self._ranked_block(asked[block], k, of_block, rule))
        return _joined(parts, min(k, len(self.items)))

    def _ranked_block(self, asked: Floats, k: int, hidden: Pairs | None, rule: Rule | None) -> Lists:
        if self._index is None or (rule is not None and rule.categories is not None):
            return best(asked, self.bundle.item_rows, k, hidden=hidden, rule=rule)
        k = min(k, len(self.items))
        lists = self._index.search(asked, k, hidden=hidden, allowed=None if rule is None else rule.allowed)
        short = np.flatnonzero(lists.rows[:, -1] < 0)  # the index has found too few
        if len(short):
            of_short = None if hidden is None else hidden.take(short)
            lists.scores[short], lists.rows[short] = best(
                asked[short], self.bundle.item_rows, k, hidden=of_short, rule=rule
            )
        return lists

    def _categories(self, categories: Any) -> Ints | None:
        if categories is None or (isinstance(categories, Mapping) and not categories):
            return None
        try:
            items, names = zip(*categories.items(), strict=True) if isinstance(categories, Mapping) else categories
            labels = pa.array(names) if not isinstance(names, pa.ChunkedArray) else names.combine_chunks()
            codes = labels.dictionary_encode().indices.fill_null(-1).to_numpy(zero_copy_only=False)
        except (TypeError, ValueError, pa.ArrowException) as error:
            raise UserError(
                "categories must be a mapping of items, or two columns (items, categories), of one type of category"
            ) from error
        rows = self.items.rows(list(items) if isinstance(items, tuple) else items)
        if len(labels) != len(rows):
            raise UserError(f"{len(rows):,} items have {len(labels):,} categories; give one for each")
        of_item = np.full(len(self.items), -1)
        of_item[rows[::-1]] = codes[::-1]  # an item of several categories is one of the first
        return of_item

    def _new_ids(self, ids: Any, count: int) -> pa.Array:
        if ids is None:
            if self.items.are_numbers:
                first = int(np.max(self.items.values.to_numpy(), initial=-1)) + 1
                if first + count > 2**63:
                    raise UserError("there are no whole numbers left for the ids of new items; give them ids")
                return pa.array(range(first, first + count), self.items.values.type)
            ids = [f"cold_{place}" for place in range(count)]
        column = self.items.column(ids)
        rows = self.items.known(column)[1]
        if len(column) != count:
            raise UserError(f"{count:,} items have features and {len(column):,} have ids; give one for each")
        taken = column.filter(pa.array(rows >= 0)).to_pylist()
        if taken or len(column.unique()) < count:
            raise UserError(f"the bundle has an item {named(taken)} already" if taken else "an id is given twice")
        return column


def recall_of_index(place: str, *, k: int = 20, most_users: int = 1000) -> str:
    """Return a sentence that says how much of the exact lists of a bundle's users its index finds.

    Args:
        place: of the bundle.
        k: length of the lists.
        most_users: of how many users at the most, evenly spread over the rows.
    """
    approximate = Recommender.load(place, index="faiss")
    exact = Recommender(approximate.bundle)
    users = np.unique(np.linspace(0, len(exact.users) - 1, min(most_users, len(exact.users))).astype(np.int64))
    lists = [one.lists(users, k, exclude_seen=True, rule=None).rows for one in (exact, approximate)]
    offsets = np.arange(len(users))[:, None] * len(exact.items)
    wanted, found = ((offsets + rows)[rows >= 0] for rows in lists)
    share = np.isin(wanted, found).mean() if len(wanted) else 1.0
    return f"the index finds {share:.2%} of the exact top {k} of {len(users):,} users"


def _check_k(k: int) -> None:
    if isinstance(k, bool) or not isinstance(k, int | np.integer) or k < 1:
        raise UserError(f"k is {k!r}: it must be a whole number of at least 1")


def _joined(parts: Sequence[Lists], k: int) -> Lists:
    empty = Lists(np.empty((0, k), np.float32), np.empty((0, k), np.int64))
    scores, rows = zip(empty, *parts, strict=True)
    return Lists(np.concatenate(scores), np.concatenate(rows))


def _answered(ids: Ids, lists: Lists, *, alone: bool) -> Recommendations:
    column = ids.of(lists.rows.reshape(-1))
    missing = lists.rows < 0
    flat = column.fill_null(0 if ids.are_numbers else "").to_numpy(zero_copy_only=False)
    found = flat.reshape(lists.rows.shape)
    if missing.any():
        found = np.ma.masked_array(found, missing)
    return Recommendations(found[0], lists.scores[0]) if alone else Recommendations(found, lists.scores)
