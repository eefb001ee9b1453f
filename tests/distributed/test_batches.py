"""Batches do not depend on the number of workers, nor do the optimisers' states that they keep."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adagrad, Adam, RMSprop

from diffmm_dist.data.training import TrainingData
from diffmm_dist.models.base import Phase, PhaseContext, Recommender
from diffmm_dist.models.common.ranking import RankingBatches, UserBatches, take_step
from diffmm_dist.models.recipe import Recipe, Stage
from diffmm_dist.parallel.collectives import all_reduce_sum
from diffmm_dist.parallel.world import World
from diffmm_dist.runs.checkpoint import Checkpoints
from diffmm_dist.training.state import TrainState
from tests.support.builders import RUN_ID, checkpoint_of, random_pairs, random_rows
from tests.support.workers import cuts, on_workers, shard_with

USERS, ITEMS = 23, 11
PAIRS = random_pairs(USERS, ITEMS, share=0.3, empty_rows=[0, 7, 22])
# A partition numbers rows otherwise than ids.
USER_IDS = torch.arange(USERS) * 5 % USERS
ITEM_IDS = torch.arange(ITEMS) * 4 % ITEMS


def data_of(world, empty=None):
    shard = shard_with(world, cuts(USERS, world.size, empty), cuts(ITEMS, world.size), USER_IDS, ITEM_IDS)
    return TrainingData(shard, PAIRS.select(shard.user_ids), PAIRS.num_entries, {})


def triples(batch, data):
    """A batch's users and items by their ids, counted, so that all workers' parts add up."""
    items = batch.item_halo.extend(data.shard.own_item_ids[:, None]).flatten()
    own = torch.stack([data.shard.user_ids[batch.user_rows], items[batch.pos_items], items[batch.neg_items]], 1)
    counts = torch.zeros(USERS, ITEMS, ITEMS, dtype=torch.int64)
    counts.index_put_(tuple(own.T), torch.ones(len(own), dtype=torch.int64), accumulate=True)
    return counts


def check_batches(world, kind, batch_size, expected=None, empty=None):
    data = data_of(world, empty)
    batches = kind(data, batch_size)
    found = []
    for index in range(batches.begin(PhaseContext(world, 5, 2))):
        batch = batches[index]
        found.append(all_reduce_sum(triples(batch, data), world))
        assert int(found[-1].sum()) == batch.size
    if expected is not None:
        assert torch.equal(torch.stack(found), expected)
    return torch.stack(found)


@pytest.mark.parametrize("size", [2, 3])
def test_batches_are_the_same_for_any_number_of_workers(size):
    checks = []
    for kind in (RankingBatches, UserBatches):
        for batch_size in (6, 30):
            expected = check_batches(World.single(), kind, batch_size)
            checks += [
                partial(check_batches, kind=kind, batch_size=batch_size, expected=expected, empty=empty)
                for empty in (None, 0)
            ]
    on_workers(size, *checks)


class Tables(Recommender):
    def __init__(self, shard):
        super().__init__()
        self.shard = shard
        self.users = nn.Parameter(random_rows(USERS, 3)[shard.user_ids])
        self.items = nn.Parameter(random_rows(ITEMS, 3, seed=1)[shard.own_item_ids])
        self.bias = nn.Parameter(torch.full((len(shard.user_ids),), 0.5))
        self.scale = nn.Parameter(torch.ones(3))

    def row_owners(self):
        return {"users": self.shard.users, "items": self.shard.items, "bias": self.shard.users}

    def embeddings(self):
        return self.users.detach(), self.items.detach()


class Fit(Phase):
    """A different optimiser for every parameter but one, and all of them on the users."""

    name, unit = "fit", "users"

    def __init__(self, model, data):
        self.model, self.batches, self.world = model, UserBatches(data, 8), data.shard.world
        self.num_examples = self.batches.num_examples
        own = {"sgd": model.items, "adagrad": model.bias, "rmsprop": model.scale}
        makers = {"sgd": partial(SGD, momentum=0.9), "adagrad": Adagrad, "rmsprop": RMSprop, "adam": Adam}
        self.optimizers = {
            name: make([model.users, *([own[name]] if name in own else [])], lr=0.01) for name, make in makers.items()
        }

    def begin(self, context):
        return self.batches.begin(context)

    def step(self, index):
        batch, model = self.batches[index], self.model
        for name, optimizer in self.optimizers.items():
            loss = batch.bpr((model.users * model.scale, model.items), divisor=batch.size)
            loss = loss + (model.bias**2).sum() / USERS
            take_step(loss, optimizer, [model.scale] if name == "rmsprop" else [], self.world)
        return {}


def check_saved(world, folder, load, first):
    """Two steps, which begin with a checkpoint if there is to be one, and end with one."""
    data = data_of(world)
    model = Tables(data.shard)
    state = TrainState(Recipe(model, [Stage("fit", [Fit(model, data)], epochs=1)]), world)
    checkpoints = Checkpoints(str(folder), run=RUN_ID, keep=1, world=world)
    if load:
        state.load_tensors(checkpoint_of(checkpoints).tensors(state.owner_of))
    phase = state.phases[0]
    phase.begin(PhaseContext(world, 5, 0))
    for index in range(first, first + 2):
        phase.step(index)
    state.cursor.step = first + 2
    checkpoints.save(state.tensors(), state.progress(), state.owner_of)


@pytest.mark.parametrize("kinds", [(2, 1), (1, 3), (2, 3)], ids=str)
def test_states_of_all_kinds_of_optimisers_go_on_with_another_number_of_workers(tmp_path, kinds):
    for folder, sizes in (("whole", (1, 1)), ("parts", kinds)):
        for number, size in enumerate(sizes):
            on_workers(size, partial(check_saved, folder=tmp_path / folder, load=number > 0, first=2 * number))
    found, expected = (
        checkpoint_of(Checkpoints(str(tmp_path / folder), run=RUN_ID, keep=1, world=World.single())).tensors()
        for folder in ("parts", "whole")
    )
    assert set(found) == set(expected)
    assert len(found) == 4 + 2 + 2 * 2 + 2 * 2 + 3  # the model, SGD, Adagrad, RMSprop and Adam
    for name, tensor in expected.items():
        torch.testing.assert_close(
            found[name], tensor, rtol=1e-4, atol=1e-6, msg=lambda text, key=name: f"{key}: {text}"
        )
