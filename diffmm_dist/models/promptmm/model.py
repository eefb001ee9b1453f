"""PromptMM: the teacher, the student and which of them ranks (equations in README.md)."""

import hashlib

import torch
from torch import Tensor, nn

from diffmm_dist.errors import UserError
from diffmm_dist.graph.hetero import HeteroGraph, Kernel
from diffmm_dist.graph.propagate import Rows
from diffmm_dist.models.base import Recommender
from diffmm_dist.models.promptmm.student import Student
from diffmm_dist.models.promptmm.teacher import PromptTeacher
from diffmm_dist.models.recipe import TeacherTables
from diffmm_dist.parallel.random import RandomStream
from diffmm_dist.parallel.ranges import Ownership

TEACHER, STUDENT = "teacher", "student"


class PromptMM(Recommender):
    """A teacher and a student; the stage that the run is in says which of them ranks.

    Args:
        teacher: None where another run's embeddings are learned from.
        student: the student.
        graph: their graph.
        seed: of the dropout that the released program leaves on in evaluation.

    Attributes:
        teacher_digest: of what a given teacher is; 0 before it was read, and of the run's own teacher.
    """

    def __init__(self, teacher: PromptTeacher | None, student: Student, graph: HeteroGraph, *, seed: int) -> None:
        super().__init__()
        self.teacher = teacher
        self.student = student
        self.graph = graph
        self._seed = seed
        self.teacher_digest: Tensor
        self.register_buffer("teacher_digest", torch.tensor(0))

    @property
    def kernel(self) -> Kernel:
        """The graph's kernel."""
        return self.graph.kernel

    def row_owners(self) -> dict[str, Ownership]:
        """Return the owners of both ones' tables."""
        parts = {TEACHER: self.teacher, STUDENT: self.student}
        return {
            f"{name}.{table}": owner
            for name, part in parts.items()
            if part is not None
            for table, owner in part.row_owners().items()
        }

    @torch.no_grad()
    def embeddings(self) -> Rows:
        """Return the final embeddings of the teacher in its stage, of the student in its own; without gradient."""
        if self.stage == TEACHER:
            assert self.teacher is not None
            return self.teacher.embeddings()
        student = self.student
        if student.settings.kind == "lightgcn":
            return student.embeddings()
        assert self.teacher is not None
        modal_items = {name: items for name, (_, items) in self.teacher().modal.items()}
        # The released program never switches this dropout off; a mask of the run stands for its random ones.
        stream = RandomStream.of(self._seed, "evaluation")
        final: Rows = student(modal_items, student.dropout(stream) if student.settings.released else None)
        return final

    def deployed(self) -> nn.Module:
        """Return the student alone where it stands without its teacher."""
        alone = self.stage == STUDENT and self.student.settings.kind == "lightgcn"
        return self.student if alone else self

    def restored(self) -> None:
        """Make again what follows from the teacher's tokens."""
        if self.teacher is not None:
            self.teacher.restored()

    @torch.no_grad()
    def remember(self, tables: TeacherTables) -> None:
        """Remember which teacher the student begins with."""
        self.teacher_digest.fill_(_digest(tables))

    def check_remembered(self, tables: TeacherTables) -> None:
        """Refuse another teacher than the student began with.

        Raises:
            UserError: it is another one.
        """
        if int(self.teacher_digest) != _digest(tables):
            raise UserError(
                f"model.teacher, {tables.name}, is not what it was when this run began; restore it, or choose another "
                "run.path"
            )


def _digest(tables: TeacherTables) -> int:
    return int.from_bytes(hashlib.blake2b(tables.identity.encode(), digest_size=7).digest(), "big")
