"""The golden files of AdaGCL, and the model and its phase built from one of them, whole or one worker's shard."""

from pathlib import Path

import numpy as np
import torch

from diffmm_dist.data.training import TrainingData
from diffmm_dist.graph.entries import Entries, entry_keys
from diffmm_dist.graph.hetero import REAL, HeteroGraph
from diffmm_dist.graph.relation import Relation
from diffmm_dist.models.adagcl.gates import HardConcrete
from diffmm_dist.models.adagcl.model import AdaGCL
from diffmm_dist.models.adagcl.phases import AdaptivePhase, Draws, ViewSettings
from diffmm_dist.models.base import Optimization
from diffmm_dist.models.common.ranking_batch import RankingBatch
from diffmm_dist.parallel.shard import Shard
from diffmm_dist.sparse import CSR
from tests.support.builders import own_rows

FILES = sorted((Path(__file__).parents[1] / "golden" / "adagcl").glob("*.npz"))
TABLES = ("user_embedding", "item_embedding")


class Golden:
    """One file, read in a precision, and the record of which of its arrays were compared."""

    def __init__(self, path, dtype):
        with np.load(path, allow_pickle=False) as arrays:
            self.arrays = {name: arrays[name] for name in arrays.files}
        self.dtype = dtype
        self.compared = set()

    def __getitem__(self, name):
        array = self.arrays[name]
        if array.ndim == 0:
            return array.item()
        values = torch.from_numpy(array)
        # The gates' noise is float64 in both precisions.
        return values if "denoise_noise" in name or not values.is_floating_point() else values.to(self.dtype)

    def check(self, name, actual):
        self.compared.add(name)
        actual = actual.detach().double().numpy() if isinstance(actual, torch.Tensor) else np.asarray(actual)
        expected = self.arrays[name].astype(np.float64)
        if self.dtype == torch.float64:
            rtol, atol = 1e-9, 1e-11
        else:
            rtol, atol = 1e-4, 1e-4 * np.abs(expected).max(initial=0)
            if "_after_" in name:
                atol = 1e-2 * self["learning_rate"]  # Adam's first steps amplify tiny gradients
        np.testing.assert_allclose(actual, expected, rtol=rtol, atol=atol, err_msg=name)

    @property
    def num_nodes(self):
        return self["num_users"], self["num_items"]

    def own(self, name, shard):
        """A shard's rows of an array of all nodes, users then items."""
        users, items = self[name].split(self.num_nodes)
        return torch.cat([users[slice(*shard.users.own)], items[slice(*shard.items.own)]])

    def of_entries(self, name, relation):
        """A worker's part of an array of all entries, in our order; its last dimension is the entries'."""
        return self[name][..., self.places(relation)]

    def places(self, relation):
        """Where each entry that a worker has stands in the file."""
        rows, columns = self["entries"].unbind(1)
        keys = rows * sum(self.num_nodes) + columns
        order = torch.argsort(keys)
        return order[torch.searchsorted(keys[order], entry_keys(relation))]


def build(golden, shard=None, kernel="csr", mode="reference"):
    """The phase, and with it the model, as the file has them before its first batch."""
    num_users, num_items = golden.num_nodes
    edges = golden["edges"]
    pairs = CSR.from_pairs(edges[:, 0], edges[:, 1], num_rows=num_users, num_columns=num_items)
    shard = shard or Shard.whole(num_users, num_items)
    own = own_rows(pairs, shard)
    data = TrainingData(shard, own, pairs.num_entries, {})
    graph = HeteroGraph({REAL: Relation.normalized(own, shard, dtype=golden.dtype)}, kernel=kernel)
    model = AdaGCL(
        shard, graph, seed=0, embedding_dim=golden["embedding_dim"], num_layers=golden["num_layers"],
        gates=HardConcrete(golden["gate_gamma"], golden["gate_zeta"]), mode=mode,
    ).to(golden.dtype)  # fmt: skip
    with torch.no_grad():
        for name, parameter in named_parameters(model).items():
            parameter.copy_(own_part(golden[f"param_{name}"], name, shard))
        if mode == "reference":
            stored = golden.own("stored_tables", shard).split([shard.users.own.size, shard.items.own.size])
            for buffer, rows in zip(map(model.get_buffer, ("initial_users", "initial_items")), stored, strict=True):
                buffer.copy_(rows)
    settings = ViewSettings(
        golden["contrast_weight"], golden["bottleneck_weight"], golden["temperature"], golden["kl_weight"],
        golden["l0_weight"], initial_temperature=golden["gate_beta"], temperature_decay=1.0, lowest_temperature=1e-9,
        adam_eps=golden["gate_adam_eps"],
    )  # fmt: skip
    optimization = Optimization(golden["nominal_batch"], golden["learning_rate"], golden["reg_weight"])
    return AdaptivePhase(model, data, optimization, settings), model


def own_part(values, name, shard):
    """A shard's rows of a parameter, whole or of users or items."""
    owners = {"user_embedding": shard.users, "item_embedding": shard.items}
    owner = next((owner for ending, owner in owners.items() if name.endswith(ending)), None)
    return values if owner is None else values[slice(*owner.own)]


def named_parameters(model):
    """The model's parameters by the file's names."""
    names = {"hidden": 0, "output": 1}
    found = {}
    for name, parameter in model.named_parameters():
        room, *rest = name.split(".")
        if room == "pruning":
            name = "_".join(["vgae", *(str(names.get(part, part)) for part in rest)])
        elif room == "gating":
            name = "_".join(["gate", *rest[1:]])
        found[name] = parameter
    return found


def batch_of(golden, step, shard):
    """The part of a batch whose users a worker owns."""
    users, pos, neg = (golden[f"step{step}_batch_{name}"] for name in ("user", "pos", "neg"))
    mine = (users >= shard.users.own.start) & (users < shard.users.own.stop)
    return RankingBatch.of(shard, users[mine] - shard.users.own.start, pos[mine], neg[mine], size=len(users))


def draws_of(golden, step, relation):
    """The random numbers of a batch."""
    shard = relation.shard
    noise = golden.of_entries(f"step{step}_denoise_noise", relation)
    return Draws(golden.own(f"step{step}_generate_eps", shard), golden.own(f"step{step}_vgae_eps", shard), list(noise))


def gated_values(gates, scales, relation):
    """c_i m c_j of each entry, in a world of one."""
    users, items = relation.to_users.by_target.row_ids, relation.to_users.by_target.indices
    parts = Entries.of(gates, relation)
    c_U, c_I = scales[0][:, 0], scales[1][:, 0]
    edge = c_U[users] * c_I[items]
    return Entries(
        edge * parts.to_users, edge * parts.to_items, c_U**2 * parts.user_loops, c_I**2 * parts.item_loops
    ).joined()
