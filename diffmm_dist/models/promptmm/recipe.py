"""How PromptMM is built."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from diffmm_dist.graph.hetero import HeteroGraph
from diffmm_dist.models.common.costs import ModelMemory
from diffmm_dist.models.common.projection import check_modalities
from diffmm_dist.models.common.ranking import FurtherItems
from diffmm_dist.models.common.work import Cuts, Traffic, Work
from diffmm_dist.models.measures import Measures
from diffmm_dist.models.promptmm import candidates, costs
from diffmm_dist.models.promptmm.model import STUDENT, TEACHER, PromptMM
from diffmm_dist.models.promptmm.objectives import StudentLosses, TeacherLosses
from diffmm_dist.models.promptmm.phases import DistillPhase, TeachPhase
from diffmm_dist.models.promptmm.settings import Settings
from diffmm_dist.models.promptmm.student import Student, StudentSettings
from diffmm_dist.models.promptmm.targets import FrozenTeacher, GivenTeacher, NoisyTeacher, PromptedTeacher, Targets
from diffmm_dist.models.promptmm.teacher import PromptTeacher, TeacherSettings
from diffmm_dist.models.recipe import Ingredients, ModelEntry, Needs, Recipe, Stage


def _build(settings: Settings, given: Ingredients) -> Recipe:
    graph = given.real_graph(width=settings.embedding_dim, normalizer="row_root", self_loops=False)
    teacher = None if settings.teacher is not None else _teacher(settings, given, graph)
    student = Student(
        given.data.shard,
        graph,
        seed=given.seed,
        embedding_dim=student_dim(settings),
        modal_dim=settings.embedding_dim,
        modalities=tuple(given.data.features),
        settings=student_settings(settings),
    )
    model = PromptMM(teacher, student, graph, seed=given.seed).to(given.device)
    stages = [_student_stage(settings, given, model)]
    if teacher is not None:
        phase = TeachPhase(teacher, given.data, teacher_losses_of(settings), given.optimization)
        stages.insert(0, Stage(TEACHER, [phase], given.epochs, given.patience, begin=teacher.prepare))
    return Recipe(model, stages)


def _teacher(settings: Settings, given: Ingredients, graph: HeteroGraph) -> PromptTeacher:
    check_modalities(tuple(given.data.features), model="promptmm")
    return PromptTeacher(
        given.data, graph, seed=given.seed, embedding_dim=settings.embedding_dim, settings=teacher_settings(settings)
    )


def _student_stage(settings: Settings, given: Ingredients, model: PromptMM) -> Stage:
    targets, released = _targets(settings, given, model), settings.mode == "release"
    prompt = model.teacher.prompt if isinstance(targets, PromptedTeacher) and model.teacher is not None else []
    phase = DistillPhase(
        model.student,
        prompt,
        given.data,
        targets,
        _candidates(settings, given, targets, released=released),
        student_losses_of(settings),
        given.optimization,
    )

    def begin() -> None:
        if isinstance(targets, GivenTeacher):
            model.remember(targets.tables())
        if settings.student.initial == "teacher":
            model.student.begin_with(targets.final())

    return Stage(STUDENT, [phase], given.epochs, given.patience, begin=begin)


def _targets(settings: Settings, given: Ingredients, model: PromptMM) -> Targets:
    if model.teacher is None:
        return GivenTeacher(given.teacher, model.check_remembered)
    kinds: dict[str, Callable[[PromptTeacher], Targets]] = {
        "noisy": NoisyTeacher,
        "prompted": PromptedTeacher,
        "frozen": FrozenTeacher,
    }
    return kinds[_kind_of_targets(settings)](model.teacher)


def _kind_of_targets(settings: Settings) -> str:
    """Return what the student is shown, as the costs call it."""
    if settings.teacher is not None:
        return "given"
    if settings.mode == "release":
        return "noisy"
    return "prompted" if settings.distillation.train_prompt else "frozen"


def _candidates(settings: Settings, given: Ingredients, targets: Targets, *, released: bool) -> FurtherItems | None:
    distillation, data = settings.distillation, given.data
    if not distillation.list_weight:
        return None
    count = distillation.num_negatives
    if released:
        return candidates.released_negatives(data, count)
    if distillation.candidates == "random":
        return candidates.random_negatives(data, count)
    return candidates.FromTeacher(data, count, topk=distillation.teacher_topk, teacher=targets.final)


def student_dim(settings: Settings) -> int:
    """Return the width of the student's embeddings."""
    return settings.student.embedding_dim or settings.embedding_dim


def teacher_settings(settings: Settings) -> TeacherSettings:
    """Return what the teacher is told of its network."""
    network, prompt = settings.network, settings.prompt
    return TeacherSettings(
        num_layers=network.num_layers,
        readout=network.readout,
        dropout_prob=network.dropout_prob,
        modal_weight=network.modal_weight,
        soft_prompt_weight=prompt.id_weight,
        feature_prompt_weight=prompt.feature_weight,
    )


def teacher_losses_of(settings: Settings) -> TeacherLosses:
    """Return what the teacher is told of its objective."""
    network = settings.network
    return TeacherLosses(
        settings.prompt.bpr_weight, network.modal_bpr_weight, network.modal_l2_weight, network.weight_decay
    )


def student_settings(settings: Settings) -> StudentSettings:
    """Return what the student is told of its network."""
    student = settings.student
    return StudentSettings(
        kind=student.kind,
        num_layers=student.num_layers,
        modal_weight=student.modal_weight,
        dropout_prob=settings.network.dropout_prob,
        released=settings.mode == "release",
    )


def student_losses_of(settings: Settings) -> StudentLosses:
    """Return what the student is told of its objective."""
    student, distillation = settings.student, settings.distillation
    return StudentLosses(
        learning_rate=student.learning_rate,
        weight_decay=student.weight_decay,
        views=distillation.views if settings.teacher is None else "final",
        **distillation.model_dump(exclude={"candidates", "num_negatives", "teacher_topk", "train_prompt", "views"}),
    )


def _sizes(settings: Settings, widths: Sequence[int], batch_size: int) -> costs.Sizes:
    targets = _kind_of_targets(settings)
    return costs.Sizes(
        dim=settings.embedding_dim,
        num_layers=settings.network.num_layers,
        widths=[] if targets == "given" else widths,
        student_dim=student_dim(settings),
        student_layers=settings.student.num_layers,
        targets=targets,
        lists=settings.distillation.num_negatives if settings.distillation.list_weight else 0,
        released=settings.mode == "release",
        replicated=targets == "prompted" or settings.student.kind == "mm_light",
        batch_size=batch_size,
    )


def _memory(settings: Settings, needs: Needs) -> ModelMemory:
    sizes = _sizes(settings, list(needs.widths.values()), needs.batch_size)
    return costs.memory(needs.share, sizes, dgl=needs.dgl)


def _work(settings: Settings, needs: Needs) -> Mapping[str, Work]:
    return costs.work(needs.share, _sizes(settings, list(needs.widths.values()), needs.batch_size))


def _traffic(settings: Settings, cuts: Cuts) -> Sequence[Traffic]:
    widths = [features.shape[1] for features in cuts.data.features.values()]
    return costs.traffic(cuts, _sizes(settings, widths, cuts.batch_size))


def _smallest(settings: Settings) -> Mapping[str, Any]:
    return {"embedding_dim": 1, "network.num_layers": 1, "student.num_layers": 0, "distillation.num_negatives": 1}


ENTRY = ModelEntry(
    _build,
    _memory,
    reads_features=True,
    bounds={"distillation.teacher_topk": "items"},
    smallest=_smallest,
    measures=Measures(
        _work,
        _traffic,
        losses=("teach/bpr", "distill/bpr", "distill/pair", "distill/list_", "distill/embedding_"),
    ),
    teacher=lambda settings: settings.teacher,
)
