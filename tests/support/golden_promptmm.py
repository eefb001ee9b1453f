"""The golden files of PromptMM, and the model built from one of them, whole or one worker's shard."""

from pathlib import Path

import numpy as np
import torch

from diffmm_dist.data.training import TrainingData
from diffmm_dist.graph.hetero import REAL, HeteroGraph
from diffmm_dist.graph.relation import Relation
from diffmm_dist.models.base import Optimization
from diffmm_dist.models.common.ranking_batch import RankingBatch
from diffmm_dist.models.promptmm.model import PromptMM
from diffmm_dist.models.promptmm.objectives import StudentLosses, TeacherLosses
from diffmm_dist.models.promptmm.student import Kind, Student, StudentSettings
from diffmm_dist.models.promptmm.teacher import PromptTeacher, TeacherSettings
from diffmm_dist.parallel.shard import Shard
from diffmm_dist.sparse import CSR
from tests.support.builders import own_rows
from tests.support.golden_adagcl import Golden as _Golden

FILES = sorted((Path(__file__).parents[1] / "golden" / "promptmm").glob("*.npz"))
KINDS: tuple[Kind, ...] = ("lightgcn", "mm_light")


class Golden(_Golden):
    """One file, read in a precision, and the record of which of its arrays were compared."""

    @property
    def modalities(self):
        return [name.removeprefix("feat_") for name in self.arrays if name.startswith("feat_")]

    def check(self, name, actual, *, own=slice(None)):
        """Compare with an array of the file, or with a shard's rows of it."""
        self.compared.add(name)
        actual = actual.detach().double().numpy() if isinstance(actual, torch.Tensor) else np.asarray(actual)
        expected = self.arrays[name].astype(np.float64)
        expected = expected[own] if expected.ndim else expected
        if self.dtype == torch.float64:
            rtol, atol = 1e-8, 1e-10
        else:
            # Adam's first steps amplify tiny gradients, and large parts of a prompt's gradient cancel.
            rate = self["student_lr"] if name.startswith("student") else self["teacher_lr"]
            rtol, atol = 1e-4, 2e-2 * rate if "_after_" in name else 2e-5 * max(1.0, np.abs(expected).max(initial=0))
        np.testing.assert_allclose(actual, expected, rtol=rtol, atol=atol, err_msg=name)


def shard_of_ranges(golden, world):
    """Even ranges of users and items."""
    return Shard.whole(*golden.num_nodes, world=world)


def build(golden, *, shard=None, kernel="csr", released=True, num_layers=None):
    """The model as the file has it before its first step; the student's tables are those of its own first step."""
    shard = shard or Shard.whole(*golden.num_nodes)
    edges = golden["edges"]
    pairs = CSR.from_pairs(edges[:, 0], edges[:, 1], num_rows=shard.num_users, num_columns=shard.num_items)
    own = own_rows(pairs, shard)
    features = {name: golden[f"feat_{name}"][shard.own_item_ids] for name in golden.modalities}
    data = TrainingData(shard, own, pairs.num_entries, features)
    relation = Relation.normalized(own, shard, normalizer="row_root", self_loops=False, dtype=golden.dtype)
    graph = HeteroGraph({REAL: relation}, kernel=kernel)
    dim = golden["embedding_dim"]
    teacher = PromptTeacher(
        data, graph, seed=0, embedding_dim=dim,
        settings=TeacherSettings(
            golden["teacher_layers"], "softmax", golden["dropout"], golden["modal_weight"],
            golden["soft_prompt_weight"], golden["feature_prompt_weight"],
        ),
    ).to(golden.dtype)  # fmt: skip
    kind = KINDS[golden["student_kind"]]
    layers = golden["student_layers"] if num_layers is None else num_layers
    student = Student(
        shard, graph, seed=0, embedding_dim=dim, modal_dim=dim, modalities=tuple(golden.modalities),
        settings=StudentSettings(kind, layers, golden["modal_weight"], golden["dropout"], released),
    ).to(golden.dtype)  # fmt: skip
    with torch.no_grad():
        for name, parameter in teacher_parameters(teacher).items():
            parameter.copy_(of_own_rows(golden[f"param_{name}"], name, shard))
        for name, parameter in student_parameters(student).items():
            parameter.copy_(of_own_rows(golden[f"student_param_{name}"], name, shard))
    teacher.use_tokens(golden["token_item"][shard.own_item_ids])
    return PromptMM(teacher, student, graph, seed=0), data


def rows_of(name, shard):
    """Which rows of an array a worker has, by the array's name."""
    if name.endswith("user_embedding") or name.endswith("_user"):
        return shard.user_ids.numpy()
    return shard.own_item_ids.numpy() if name.endswith("item_embedding") or name.endswith("_item") else slice(None)


def of_own_rows(values, name, shard):
    return values[rows_of(name, shard)]


def teacher_parameters(teacher):
    """The teacher's parameters by the file's names."""
    parts = {name: teacher.projection(name) for name in teacher.modalities}
    parts |= {"prompt_user": teacher.prompt_user, "prompt_item": teacher.prompt_item}
    tables = {"user_embedding": teacher.user_embedding, "item_embedding": teacher.item_embedding}
    return tables | _affine(parts)


def student_parameters(student):
    tables = {"user_embedding": student.user_embedding, "item_embedding": student.item_embedding}
    return tables | _affine(dict(student.projections.items()))


def _affine(parts):
    found: dict[str, torch.nn.Parameter] = {}
    for name, part in parts.items():
        found |= {f"{name}_weight": part.weight, f"{name}_bias": part.bias}
    return found


def batch_of(golden, prefix, shard, *, lists=False):
    """The part of a batch whose users a worker owns."""
    users, pos, neg = (golden[f"{prefix}_batch_{part}"] for part in ("user", "pos", "neg"))
    own = shard.users.own
    mine = (users >= own.start) & (users < own.stop)
    further = golden[f"{prefix}_list_items"][mine, 1:] if lists else None
    return RankingBatch.of(shard, users[mine] - own.start, pos[mine], neg[mine], size=len(users), further_ids=further)


def masks_of(golden, prefix, shard):
    """The dropout of own items, by modality."""
    return lambda name: golden[f"{prefix}_{name}"][shard.own_item_ids]


def teacher_losses_of(golden):
    names = "prompt_bpr_weight", "modal_bpr_weight", "feature_l2_weight", "teacher_weight_decay"
    return TeacherLosses(*(golden[name] for name in names))


def student_losses_of(golden, **changed):
    """The student's losses with the weights of the file, or others."""
    values = {
        "learning_rate": golden["student_lr"], "weight_decay": golden["student_weight_decay"], "bpr_weight": 1.0,
        "pair_weight": golden["pair_weight"], "list_weight": golden["list_weight"],
        "embedding_weight": golden["embedding_weight"], "embedding_power": golden["embedding_power"], "views": "modal",
        "target_weight": 1.0, "others_weight": 1.0, "reweighted": True, "temperature": 1.0, "teacher_temperature": 1.0,
    }  # fmt: skip
    return StudentLosses(**(values | changed))


def optimization_of(golden):
    return Optimization(golden["batch_size"], golden["teacher_lr"], golden["l2_weight"])
