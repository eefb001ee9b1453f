"""What the student is shown of its teacher in a step: constants, or the teacher's view of the present prompt."""

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from diffmm_dist.graph.propagate import Rows
from diffmm_dist.models.promptmm.teacher import PromptTeacher, Views
from diffmm_dist.models.recipe import TeacherTables
from diffmm_dist.parallel.random import RandomStream


class Targets(Protocol):
    """What a teacher says of own users and own items, step by step."""

    def begin(self) -> None:
        """Make ready for an epoch; every worker calls it at the same time."""

    def final(self) -> Rows:
        """Return the final embeddings that the student begins with; every worker calls it at the same time."""

    def __call__(self, stream: RandomStream) -> Views:
        """Return the views of a step, whose random stream is given."""


class ConstantTeacher:
    """Views that ``begin`` fills once."""

    _views: Views | None = None

    def begin(self) -> None:
        """Fill them, the first time."""
        raise NotImplementedError

    def final(self) -> Rows:
        """Return the final embeddings."""
        self.begin()
        assert self._views is not None
        return self._views.final

    def __call__(self, stream: RandomStream) -> Views:
        """Return them."""
        assert self._views is not None
        return self._views


class FrozenTeacher(ConstantTeacher):
    """Teacher and prompt held fixed: computed once, without dropout."""

    def __init__(self, teacher: PromptTeacher) -> None:
        self._teacher = teacher

    @torch.no_grad()
    def begin(self) -> None:
        """Compute them, the first time."""
        if self._views is None:
            self._views = self._teacher()


class PromptedTeacher:
    """The teacher held fixed, its prompt not: gradients reach the prompt through it, without dropout.

    X W^T + b is computed once.
    """

    def __init__(self, teacher: PromptTeacher) -> None:
        self._teacher = teacher
        self._reduced: dict[str, Tensor] = {}

    @torch.no_grad()
    def begin(self) -> None:
        """Hold the teacher, and compute what depends on it alone, the first time."""
        if not self._reduced:
            teacher = self._teacher
            self._reduced = {name: teacher.projection(name)(teacher.features(name)) for name in teacher.modalities}

    def final(self) -> Rows:
        """Return the teacher's final embeddings without dropout."""
        return self._teacher.embeddings()

    def __call__(self, stream: RandomStream) -> Views:
        """Return what the teacher says with the present prompt."""
        teacher = self._teacher
        prompts = teacher.prompts()
        reduced = {name: rows + teacher.prompted(name, prompts[1], held=True) for name, rows in self._reduced.items()}
        return teacher.views(teacher.prompted_tables(prompts, held=True), reduced)


class NoisyTeacher:
    """Teacher and prompt held fixed, with the dropout of training: what the released program shows.

    The ID embeddings' layers and the reduced features before dropout are computed once.
    """

    def __init__(self, teacher: PromptTeacher) -> None:
        self._teacher = teacher
        self._means: tuple[Tensor, Tensor] | None = None
        self._reduced: dict[str, Tensor] = {}

    @torch.no_grad()
    def begin(self) -> None:
        """Compute what does not depend on the dropout, the first time."""
        if self._means is None:
            teacher = self._teacher
            prompts = teacher.prompts()
            self._means = teacher.layer_mean(teacher.prompted_tables(prompts))
            self._reduced = {name: teacher.reduced(name, prompts[1]) for name in teacher.modalities}

    def final(self) -> Rows:
        """Return the teacher's final embeddings without dropout."""
        return self._teacher.embeddings()

    @torch.no_grad()
    def __call__(self, stream: RandomStream) -> Views:
        """Return what the teacher says with a step's dropout."""
        assert self._means is not None
        dropout = self._teacher.dropout(stream)
        modal = self._teacher.modal({name: rows * dropout(name) for name, rows in self._reduced.items()})
        return Views(self._teacher.final(self._means, modal), modal)


class GivenTeacher(ConstantTeacher):
    """The final embeddings of another run or bundle.

    Args:
        read: reads them, every worker at the same time; None of a student that is only loaded.
        check: raises an error where they are not those with which the student began.
    """

    def __init__(self, read: Callable[[], TeacherTables] | None, check: Callable[[TeacherTables], None]) -> None:
        self._read, self._check = read, check

    def tables(self) -> TeacherTables:
        """Read them."""
        assert self._read is not None, "ModelEntry.teacher says where they are"
        tables = self._read()
        self._views = Views((tables.users, tables.items), {})
        return tables

    def begin(self) -> None:
        """Read them, where this process has not yet."""
        if self._views is None:
            self._check(self.tables())
