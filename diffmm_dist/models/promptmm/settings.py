"""PromptMM's settings."""

from typing import Annotated, Literal

from pydantic import Field

from diffmm_dist.config.section import Count, Location, NonNegative, Number, Positive, Section, rule

Temperature = Annotated[Number, Field(ge=1e-6)]
Probability = Annotated[Number, Field(ge=0.0, lt=1.0)]


class Network(Section):
    """The teacher's network, and its losses."""

    num_layers: Annotated[int, Field(ge=1, le=64)] = 2
    """Propagation layers L_T of the ID embeddings."""
    readout: Literal["softmax", "mean"] = "softmax"
    """The last layer's rows are softmaxed, as published, or left as they are."""
    dropout_prob: Probability = 0.4
    """Dropout of the reduced features."""
    modal_weight: NonNegative = 0.028
    """Weight c of the normalised modality embeddings in the final ones."""
    modal_bpr_weight: NonNegative = 1e-3
    """Weight of BPR of the modality embeddings."""
    modal_l2_weight: NonNegative = 1e-5
    """Weight of their squared norm, halved and divided by the number of items."""
    weight_decay: NonNegative = 1e-3
    """AdamW's decoupled weight decay of teacher and prompt."""


class Prompt(Section):
    """The soft prompt."""

    id_weight: NonNegative = 0.1
    """Weight of the normalised prompt on the ID embeddings."""
    feature_weight: NonNegative = 9.0
    """Weight of the normalised prompt on the features."""
    bpr_weight: NonNegative = 100.0
    """Weight of BPR of the prompt itself."""


class Student(Section):
    """What is deployed."""

    kind: Literal["lightgcn", "mm_light"] = "lightgcn"
    """ID tables that are propagated, or besides the teacher's item features, which then have to be there."""
    embedding_dim: Count | None = None
    """Width of the student's embeddings; null takes `model.embedding_dim`."""
    num_layers: Annotated[int, Field(ge=0, le=64)] = 1
    """Propagation layers L_S; 0 ranks with the tables as they are."""
    initial: Literal["teacher", "random"] = "teacher"
    """What its tables begin with: the teacher's embeddings, of another width the factors of that rank that come nearest
    to its scores, or random values."""
    modal_weight: NonNegative = 0.55
    """Weight c of the teacher's item features in `mm_light`."""
    learning_rate: Positive = 2e-3
    """Learning rate of AdamW."""
    weight_decay: NonNegative = 0.01
    """AdamW's decoupled weight decay of the student, and of the prompt where it goes on learning."""


class Distillation(Section):
    """What the student learns from its teacher, besides BPR."""

    bpr_weight: NonNegative = 1.0
    """Weight of the student's own BPR."""
    pair_weight: NonNegative = 10.0
    """Weight of the divergence of pairs."""
    list_weight: NonNegative = 1e-3
    """Weight of the divergence of lists."""
    embedding_weight: NonNegative = 1.0
    """Weight of the scaled-cosine error of the item embeddings."""
    embedding_power: Annotated[Number, Field(ge=1.0)] = 2.0
    """Power gamma of that error."""
    views: Literal["modal", "final"] = "modal"
    """Lists and embeddings follow those of each modality, as published, or the teacher's final ones; a teacher that is
    given has no others."""
    candidates: Literal["random", "teacher"] = "random"
    """Items of a list besides the positive: random ones that the user has not interacted with, or some of those that
    the teacher ranks first."""
    num_negatives: Count = 10
    """How many items K a list has besides the positive."""
    teacher_topk: Count = 100
    """From how many of the teacher's first items `teacher` draws them."""
    target_weight: NonNegative = 1.0
    """Weight alpha of whether it is the positive."""
    others_weight: NonNegative = 1.0
    """Weight beta of which of the others it is."""
    reweighted: bool = True
    """Weight the others of each user by how little the teacher believes in the positive."""
    temperature: Temperature = 1.0
    """Temperature of both lists."""
    teacher_temperature: Temperature = 1.0
    """What the teacher's scores are divided by besides."""
    train_prompt: bool = True
    """The prompt goes on learning from the student's objective, through the teacher that is held fixed; false holds the
    prompt too, and what the teacher says is computed once."""


@rule("model.mode", "model.teacher", "model.student.kind")
def _given_teacher_has_final_embeddings(mode: str, teacher: str | None, kind: str) -> str | None:
    if teacher is None or (mode == "paper" and kind == "lightgcn"):
        return None
    asked = "model.mode=release" if mode == "release" else "model.student.kind=mm_light"
    return f"{asked} needs a teacher that this run trains, with its modalities; remove model.teacher or {asked}"


@rule("model.mode", "model.embedding_dim", "model.student.embedding_dim", "model.student.initial")
def _released_student_begins_as_the_teacher(mode: str, dim: int, student_dim: int | None, initial: str) -> str | None:
    if mode == "paper" or (student_dim in (None, dim) and initial == "teacher"):
        return None
    return (
        "model.mode=release has a student that begins as its teacher, so model.student.embedding_dim must be null and "
        "model.student.initial=teacher; set them so, or model.mode=paper"
    )


@rule(
    "model.teacher",
    "model.embedding_dim",
    "model.student.embedding_dim",
    "model.distillation.embedding_weight",
    "model.distillation.views",
    "model.distillation.train_prompt",
)
def _embeddings_can_be_compared(
    teacher: str | None, dim: int, student_dim: int | None, weight: float, views: str, train_prompt: bool
) -> str | None:
    if teacher is not None or student_dim in (None, dim) or weight == 0 or (views == "final" and not train_prompt):
        return None
    return (
        f"model.student.embedding_dim={student_dim} cannot be compared with what model.embedding_dim={dim} wide "
        "embeddings of modalities, or of a prompt that goes on learning, are; set model.distillation.embedding_weight "
        "to 0, or model.distillation.views to final and model.distillation.train_prompt to false"
    )


@rule("model.teacher", "model.distillation.candidates", "model.distillation.train_prompt")
def _lists_are_of_a_teacher_that_stays(teacher: str | None, candidates: str, train_prompt: bool) -> str | None:
    if candidates == "random" or teacher is not None or not train_prompt:
        return None
    return (
        "model.distillation.candidates=teacher ranks once, with a teacher that does not change any more; set "
        "model.distillation.train_prompt to false or candidates to random"
    )


_FREE = ("views", "candidates", "target_weight", "others_weight", "reweighted", "temperature", "teacher_temperature")


@rule("model.mode", *(f"model.distillation.{name}" for name in _FREE))
def _released_distillation_has_no_choices(mode: str, *chosen: object) -> str | None:
    defaults = Distillation()
    changed = [name for name, value in zip(_FREE, chosen, strict=True) if value != getattr(defaults, name)]
    if mode == "paper" or not changed:
        return None
    names = ", ".join(f"model.distillation.{name}" for name in changed)
    return f"model.mode=release has no use for {names}; leave it out, or set model.mode=paper"


class Settings(Section):
    """PromptMM: a multi-modal teacher with prompts, and a student that learns from it or from any trained model."""

    rules = (
        _given_teacher_has_final_embeddings,
        _released_student_begins_as_the_teacher,
        _embeddings_can_be_compared,
        _lists_are_of_a_teacher_that_stays,
        _released_distillation_has_no_choices,
    )

    name: Literal["promptmm"] = "promptmm"
    """The model."""
    mode: Literal["paper", "release"] = "paper"
    """`release` distils as the released program does where it is not what the paper says (the model's README names
    each)."""
    teacher: Location | None = None
    """A run or an exported bundle, of any model on the same dataset, to learn from; null trains the teacher first."""
    embedding_dim: Count = 32
    """Width d of the teacher's embeddings."""
    network: Network = Network()
    """The teacher's network."""
    prompt: Prompt = Prompt()
    """The prompt."""
    student: Student = Student()
    """The student."""
    distillation: Distillation = Distillation()
    """What the student learns from the teacher."""
