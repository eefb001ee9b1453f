"""The golden files, and DiffMM built from one of them, whole or one worker's shard of it."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from diffmm_dist.data.training import TrainingData
from diffmm_dist.graph.hetero import REAL, HeteroGraph
from diffmm_dist.graph.layout import RowLayout
from diffmm_dist.graph.relation import Relation
from diffmm_dist.models.common.denoising import DiffusionSettings
from diffmm_dist.models.common.ranking_batch import RankingBatch
from diffmm_dist.models.diffmm.model import DiffMM, generated
from diffmm_dist.models.diffmm.phases import ContrastSettings
from diffmm_dist.parallel.shard import Shard
from diffmm_dist.sparse import CSR
from tests.support.builders import own_rows

FILES = sorted((Path(__file__).parents[1] / "golden").glob("*.npz"))
TOLERANCE = {"rtol": 1e-4, "atol": 1e-6}


RTOL, ATOL = 1e-4, 1e-6


class Golden:
    """One golden file, and the record of which of its arrays were compared."""

    def __init__(self, path):
        with np.load(path, allow_pickle=False) as arrays:
            self.arrays = {name: arrays[name] for name in arrays.files}
        self.compared = set()

    def __getitem__(self, name):
        array = self.arrays[name]
        return array.item() if array.ndim == 0 else torch.from_numpy(array)

    def check(self, name, actual):
        self.compared.add(name)
        actual = actual.detach().numpy() if isinstance(actual, torch.Tensor) else np.asarray(actual)
        expected = self.arrays[name]
        # An element near zero is a difference of terms as large as the array's others, and every processor sums them
        # in another order: what is absolute is relative to the array's largest element where that exceeds 1.
        scale = max(1.0, float(np.abs(expected).max(initial=0)))
        np.testing.assert_allclose(actual, expected, rtol=RTOL, atol=ATOL * scale, err_msg=name)

    @property
    def modalities(self):
        return [name.removeprefix("feat_") for name in self.arrays if name.startswith("feat_")]

    @property
    def modal_edges(self):
        return [f"modal_edges_{name}" for name in self.modalities]

    def pairs(self, name):
        edges = self[name]
        return CSR.from_pairs(edges[:, 0], edges[:, 1], num_rows=self["num_users"], num_columns=self["num_items"])


def build_model(golden, kernel="csr", shard=None, num_item_shards=1, layout_of=RowLayout, **diffusion):
    """DiffMM with the file's parameters; of a shard, the rows that it owns."""
    shard = shard or Shard.whole(golden["num_users"], golden["num_items"])
    users, items = slice(*shard.users.own), slice(*shard.items.own)
    own = {name: own_rows(golden.pairs(name), shard) for name in ("edges", *golden.modal_edges)}
    features = {name: golden[f"feat_{name}"][items] for name in golden.modalities}
    data = TrainingData(shard, own["edges"], golden.pairs("edges").num_entries, features)
    layout = layout_of(shard)
    names = {REAL: "edges", **{generated(m): f"modal_edges_{m}" for m in golden.modalities}}
    relations = {name: Relation.normalized(layout.pairs(own[edges]), layout.shard) for name, edges in names.items()}
    graph = HeteroGraph(relations, kernel=kernel)
    settings = DiffusionSettings(
        golden["diffusion_steps"], golden["noise_scale"], golden["noise_min"], golden["noise_max"], 0, False,
        (golden["hidden_dim"],), golden["time_dim"], 0.0, False, golden["msi_weight"], 1, 1.0,
    )  # fmt: skip
    model = DiffMM(
        data, graph, seed=0, embedding_dim=golden["embedding_dim"], num_layers=golden["num_layers"],
        modality_projection=("matrix", "affine")[golden["projection"]],
        residual_weight=golden["modal_residual_weight"], modal_graph_weight=golden["modal_graph_weight"],
        diffusion=replace(settings, **diffusion), num_item_shards=num_item_shards, layout=layout,
    )  # fmt: skip
    rows = {"user_embedding": users, "item_embedding": items}
    with torch.no_grad():
        for name, parameter in golden_parameters(golden, model).items():
            parameter.copy_(golden[f"param_{name}"][rows.get(name, ...)])
    return model


def golden_parameters(golden, model):
    named = {
        "user_embedding": model.user_embedding,
        "item_embedding": model.item_embedding,
        "modal_weight": model.modality_logits,
    }
    for m in golden.modalities:
        projection = model.projections[m]
        if golden["projection"] == 0:
            named[f"{m}_projection"] = projection.weight
        else:
            named[f"{m}_projection_weight"] = projection.weight
            named[f"{m}_projection_bias"] = projection.bias
    return named


def batch_of(golden, shard):
    """The file's batch: the part of it whose users the shard owns."""
    users, own = golden["batch_user"], shard.users.own
    mine = (users >= own.start) & (users < own.stop)
    return RankingBatch.of(
        shard, users[mine] - own.start, golden["batch_pos"][mine], golden["batch_neg"][mine], size=len(users)
    )


def contrast_of(golden):
    return ContrastSettings(golden["contrast_weight"], golden["temperature"], ("modal", "main")[golden["contrast"]])
