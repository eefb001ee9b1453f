"""Phases with several optimisers, with many steps or none, of the toy model."""

from torch.optim import SGD, Adagrad, AdamW, RMSprop

from diffmm_dist.models.base import Phase
from diffmm_dist.models.common.ranking import RankingBatches, UserBatches, take_step


class WarmPhase(Phase):
    """Two optimisers of different classes, which take turns within a step."""

    name, unit = "warm", "interactions"

    def __init__(self, model, data, batch_size):
        self._model, self._batch_size = model, batch_size
        self._batches, self._world = RankingBatches(data, batch_size), data.shard.world
        self.num_examples = self._batches.num_examples
        self._tables = SGD([model.user_embedding, model.item_embedding], lr=batch_size / 48, momentum=0.9)
        self._scale = RMSprop([model.scale], lr=0.05)
        self.optimizers = {"tables": self._tables, "scale": self._scale}

    def begin(self, context):
        return self._batches.begin(context)

    def step(self, index):
        batch, model = self._batches[index], self._model
        bpr = batch.bpr(model.scaled(), divisor=self._batch_size)
        take_step(bpr, self._tables, [], self._world)
        again = batch.bpr(model.scaled(), divisor=self._batch_size)
        take_step(again, self._scale, [model.scale], self._world)
        return {"bpr": bpr.detach(), "again": again.detach()}


class RefinePhase(Phase):
    """Steps the items alone, on batches of users."""

    name, unit = "refine", "users"

    def __init__(self, model, data, batch_size):
        self._model, self._batch_size = model, batch_size
        self._batches, self._world = UserBatches(data, batch_size, num_batches=3), data.shard.world
        self.num_examples = self._batches.num_examples
        self.optimizers = {"items": Adagrad([model.item_embedding], lr=0.01)}

    def begin(self, context):
        return self._batches.begin(context)

    def step(self, index):
        bpr = self._batches[index].bpr(self._model.scaled(), divisor=self._batch_size)
        take_step(bpr, self.optimizers["items"], [], self._world)
        return {"bpr": bpr.detach()}


class SometimesPhase(Phase):
    """Has nothing to do in epochs of even numbers, in others one step."""

    name, unit, num_examples = "sometimes", "scales", 1

    def __init__(self, model, world):
        self._model, self._world = model, world
        self.optimizers = {"scale": AdamW([model.scale], lr=0.01)}

    def begin(self, context):
        self._runs = context.epoch % 2 == 1
        return int(self._runs)

    def step(self, index):
        loss = (self._model.scale**2).sum() / self._world.size
        take_step(loss, self.optimizers["scale"], [self._model.scale], self._world)
        return {"loss": loss.detach()}

    def finish(self):
        assert self._runs
        return {"scale": float(self._model.scale.detach().sum())}


class StudentPhase(Phase):
    """Learns from interactions and from the first tables as they were when the stage began."""

    name, unit = "student", "interactions"

    def __init__(self, model, data, batch_size):
        self._model, self._batch_size = model, batch_size
        self._batches, self._world = RankingBatches(data, batch_size), data.shard.world
        self.num_examples = self._batches.num_examples
        self.optimizers = {"adam": AdamW([model.student_users, model.student_items], lr=0.02)}

    def begin(self, context):
        return self._batches.begin(context)

    def step(self, index):
        model = self._model
        students = model.student_users, model.student_items
        bpr = self._batches[index].bpr(students, divisor=self._batch_size)
        squares = (students[0] - model.target_users).square().sum() + (students[1] - model.target_items).square().sum()
        imitation = squares / 100 + 0.01 * (students[1].norm(dim=1) - model.target_norm).square().sum()
        take_step(bpr + imitation, self.optimizers["adam"], [], self._world)
        return {"bpr": bpr.detach(), "imitation": imitation.detach()}
