"""How the toy model is built."""

from diffmm_dist.models.recipe import ModelEntry, Recipe, Stage
from tests.contracts.toy import costs
from tests.contracts.toy.model import Toy
from tests.contracts.toy.phases import RefinePhase, SometimesPhase, StudentPhase, WarmPhase


def _build(settings, given):
    data, batch_size, world = given.data, given.optimization.batch_size, given.data.shard.world
    model = Toy(data.shard, seed=given.seed, embedding_dim=settings.embedding_dim).to(given.device)
    refine = [SometimesPhase(model, world), RefinePhase(model, data, batch_size)]
    student = [StudentPhase(model, data, batch_size)]
    refine_epochs = settings.refine_epochs or given.epochs
    return Recipe(
        model,
        [
            Stage("warm", [WarmPhase(model, data, batch_size)], settings.warm_epochs, patience=1),
            Stage("refine", refine, refine_epochs, given.patience, begin=model.begin_refine),
            Stage("student", student, given.epochs, given.patience, begin=model.begin_student),
        ],
    )


ENTRY = ModelEntry(
    _build,
    lambda settings, needs: costs.memory(
        needs.share, embedding_dim=settings.embedding_dim, batch_size=needs.batch_size
    ),
    propagates=False,
)
