"""The epochs of PromptMM: teach, which trains the teacher, and distill, which trains the student."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from diffmm_dist.data.training import TrainingData
from diffmm_dist.models.base import Optimization, Phase, PhaseContext
from diffmm_dist.models.common.ranking import FurtherItems, UserBatches, take_step
from diffmm_dist.models.common.ranking_batch import RankingBatch
from diffmm_dist.models.promptmm.candidates import FromTeacher
from diffmm_dist.models.promptmm.narrow import item_map
from diffmm_dist.models.promptmm.objectives import StudentLosses, TeacherLosses, student_losses, teacher_losses
from diffmm_dist.models.promptmm.student import Student, TwiceAdamW
from diffmm_dist.models.promptmm.targets import ConstantTeacher, Targets
from diffmm_dist.models.promptmm.teacher import PromptTeacher


def num_batches(num_interactions: int, batch_size: int) -> int:
    """Return how many batches of users an epoch has, as published: floor(E / B) + 1."""
    return num_interactions // batch_size + 1


class TeachPhase(Phase):
    """Batches of different users, one AdamW step of teacher and prompt each.

    Args:
        teacher: the teacher.
        data: the training data.
        settings: its losses.
        optimization: users per step, learning rate, weight of the batch rows' norm.
    """

    name, unit = "teach", "users"

    def __init__(
        self, teacher: PromptTeacher, data: TrainingData, settings: TeacherLosses, optimization: Optimization
    ) -> None:
        self._teacher, self._settings, self._optimization = teacher, settings, optimization
        self._batches = _batches(data, optimization.batch_size, None)
        self.num_examples = self._batches.num_examples
        self._adam = AdamW(
            teacher.parameters(), lr=optimization.learning_rate, weight_decay=settings.weight_decay, fused=True
        )
        self.optimizers = {"adamw": self._adam}

    def begin(self, context: PhaseContext) -> int:
        """Return how many batches there are."""
        return self._batches.begin(context)

    def step(self, index: int) -> dict[str, Tensor]:
        """Take one step."""
        batch, teacher = self._batches[index], self._teacher
        dropout = teacher.dropout(batch.stream) if teacher.settings.dropout_prob else None
        terms = teacher_losses(teacher, batch, self._settings, self._optimization, dropout=dropout)
        return _step(terms, self._adam, teacher.replicas, batch)


def _batches(data: TrainingData, batch_size: int, further: FurtherItems | None) -> UserBatches:
    count = num_batches(data.num_interactions, batch_size)
    return UserBatches(data, batch_size, num_batches=count, further=further)


def _step(
    terms: Mapping[str, Tensor], optimizer: Optimizer, replicas: Sequence[nn.Parameter], batch: RankingBatch
) -> dict[str, Tensor]:
    """Step an optimiser by the sum of some terms, and return what to record."""
    total = torch.stack(list(terms.values())).sum()
    take_step(total, optimizer, replicas, batch.shard.world)
    return {name: term.detach() for name, term in terms.items()} | {"loss": total.detach()}


class DistillPhase(Phase):
    """Batches of different users, one AdamW step of the student each, and of the prompt where it goes on learning.

    Args:
        student: the student.
        prompt: the teacher's prompt parameters that go on learning.
        data: the training data.
        targets: what the teacher says.
        candidates: of lists, if there are any.
        settings: the student's losses.
        optimization: users per step, weight of the batch rows' norm.
    """

    name, unit = "distill", "users"

    def __init__(
        self,
        student: Student,
        prompt: Sequence[nn.Parameter],
        data: TrainingData,
        targets: Targets,
        candidates: FurtherItems | None,
        settings: StudentLosses,
        optimization: Optimization,
    ) -> None:
        self._student, self._targets, self._candidates = student, targets, candidates
        self._settings, self._optimization = settings, optimization
        self._batches = _batches(data, optimization.batch_size, candidates)
        self.num_examples = self._batches.num_examples
        self._replicas = [*student.replicas, *prompt]
        self._item_map: Tensor | None = None
        kind = TwiceAdamW if self._twice else AdamW
        self._adam = kind(
            [*student.tables, *self._replicas],
            lr=settings.learning_rate,
            weight_decay=settings.weight_decay,
            fused=True,
        )
        self.optimizers = {"adamw": self._adam}

    @property
    def _twice(self) -> bool:
        """Whether each table has two names in the released program's optimiser."""
        student = self._student.settings
        return student.released and student.kind == "lightgcn"

    def begin(self, context: PhaseContext) -> int:
        """Let the teacher make ready, and return how many batches there are."""
        self._targets.begin()
        self._student.begin()
        if self._item_map is None:
            self._item_map = self._map_of_items()
        if isinstance(self._candidates, FromTeacher):
            self._candidates.begin()
        return self._batches.begin(context)

    def step(self, index: int) -> dict[str, Tensor]:
        """Take one step."""
        batch, student = self._batches[index], self._student
        views = self._targets(batch.stream)
        kind = student.settings
        modal_items = {name: items for name, (_, items) in views.modal.items()} if kind.kind == "mm_light" else {}
        final = student(modal_items, student.dropout(batch.stream) if kind.dropout_prob else None)
        terms = student_losses(
            final,
            views,
            batch,
            self._settings,
            l2_weight=self._optimization.l2_weight,
            released=kind.released,
            item_map=self._item_map,
        )
        return _step(terms, self._adam, self._replicas, batch)

    @torch.no_grad()
    def _map_of_items(self) -> Tensor | None:
        """Return the map of the teacher's item embeddings to the student's width, where both are to be compared.

        Where they differ the teacher is a constant one, or the settings refuse to compare them.
        """
        if not self._settings.embedding_weight or not isinstance(self._targets, ConstantTeacher):
            return None
        final, width = self._targets.final(), self._student.item_embedding.shape[1]
        if final[1].shape[1] == width:
            return None
        return item_map(final, width=width, world=self._student.shard.world)
