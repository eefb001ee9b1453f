"""What a run keeps of its optimisers, whatever their class, and what of it a worker has its own rows of."""

from types import SimpleNamespace

import pytest
from torch import nn
from torch.optim import SGD, Adagrad, Adam, AdamW, NAdam, RMSprop

from diffmm_dist.models.base import Phase, Recommender
from diffmm_dist.models.recipe import Recipe, Stage
from diffmm_dist.parallel.ranges import Ownership
from diffmm_dist.parallel.world import World
from diffmm_dist.training.state import TrainState
from tests.support.builders import checkpoint_of, random_rows, run_checkpoints

OPTIMIZERS = {
    "adam": lambda parameters: Adam(parameters, lr=0.1, fused=True),
    "amsgrad": lambda parameters: Adam(parameters, lr=0.1, amsgrad=True),
    "adamw": lambda parameters: AdamW(parameters, lr=0.1),
    "sgd": lambda parameters: SGD(parameters, lr=0.1),
    "momentum": lambda parameters: SGD(parameters, lr=0.1, momentum=0.9),
    "adagrad": lambda parameters: Adagrad(parameters, lr=0.1),
    "rmsprop": lambda parameters: RMSprop(parameters, lr=0.1, momentum=0.5, centered=True),
    "nadam": lambda parameters: NAdam(parameters, lr=0.1),
}


class Model(Recommender):
    def __init__(self):
        super().__init__()
        self.table = nn.Parameter(random_rows(6, 3))
        self.bias = nn.Parameter(random_rows(4, 3, seed=1)[:, 0].clone())
        self.layer = nn.Linear(3, 3)
        nn.init.constant_(self.layer.weight, 0.5)
        nn.init.constant_(self.layer.bias, 0.1)

    def row_owners(self):
        return {"table": Ownership((0, 6)), "bias": Ownership((0, 4))}

    def embeddings(self):
        return self.table, self.table


class Twice(Phase):
    """Steps each of its optimisers in turn, each on all parameters."""

    name, unit, num_examples = "fit", "rows", 6

    def __init__(self, model, **optimizers):
        self.model = model
        self.optimizers = {name: make(model.parameters()) for name, make in optimizers.items()}

    def begin(self, context):
        return 1

    def step(self, index):
        for optimizer in self.optimizers.values():
            optimizer.zero_grad(set_to_none=True)
            (self.model.layer(self.model.table).square().sum() + (self.model.bias - index).square().sum()).backward()
            optimizer.step()
        return {}


def state_with(**optimizers):
    model = Model()
    recipe = Recipe(model, [Stage("fit", [Twice(model, **optimizers)], epochs=1)])
    return TrainState(recipe, World.single())


def values(tensors):
    return {name: tensor.tolist() for name, tensor in tensors.items()}


@pytest.mark.parametrize("steps", [0, 1, 2])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_any_optimiser_goes_on_with_the_same_bits(tmp_path, name, steps):
    """Two optimisers on the same parameters, one of which is Adam, saved after some steps or before the first."""
    whole, parts = (state_with(first=OPTIMIZERS[name], second=OPTIMIZERS["adam"]) for _ in range(2))
    for index in range(steps):
        whole.phases[0].step(index)
    checkpoints = run_checkpoints(tmp_path)
    checkpoints.save(whole.tensors(), whole.progress(), whole.owner_of)
    parts.load_tensors(checkpoint_of(checkpoints).tensors(parts.owner_of))
    assert values(parts.tensors()) == values(whole.tensors())
    for state in (whole, parts):
        state.phases[0].step(steps)
    assert values(parts.tensors()) == values(whole.tensors())


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_what_has_the_form_of_its_parameter_is_owned_as_its_rows_are(name):
    state = state_with(one=OPTIMIZERS[name])
    state.phases[0].step(0)
    for tensor, value in state.tensors().items():
        parameter = tensor.split("/")[-2] if tensor.startswith("optimizer/") else tensor.removeprefix("model/")
        owned = state.owner_of(tensor, value.shape) is not None
        assert owned == (parameter in ("table", "bias") and value.numel() > 1), tensor


def test_tensors_are_named_by_phase_optimiser_parameter_and_key():
    state = state_with(slow=OPTIMIZERS["momentum"], fast=OPTIMIZERS["adam"])
    state.phases[0].step(0)
    of_optimizers = {name for name in state.tensors() if name.startswith("optimizer/") and "/layer.bias/" in name}
    assert of_optimizers == {
        "optimizer/fit/slow/layer.bias/momentum_buffer",
        "optimizer/fit/fast/layer.bias/step",
        "optimizer/fit/fast/layer.bias/exp_avg",
        "optimizer/fit/fast/layer.bias/exp_avg_sq",
    }


def test_a_checkpoint_of_the_time_when_a_phase_had_one_optimiser_is_read():
    state, other = state_with(adam=OPTIMIZERS["adam"]), state_with(adam=OPTIMIZERS["adam"])
    state.phases[0].step(0)
    earlier = {name.replace("/fit/adam/", "/fit/"): tensor for name, tensor in state.tensors().items()}
    assert all(state.owner_of(name, tensor.shape) for name, tensor in earlier.items() if "/table/exp" in name)
    other.load_tensors(earlier)
    assert values(other.tensors()) == values(state.tensors())


def test_an_optimiser_whose_state_is_shared_in_no_known_way_is_no_silent_loss():
    state = state_with(one=OPTIMIZERS["adam"])
    state.world = SimpleNamespace(size=2)
    with pytest.raises(AssertionError, match="row_var"):
        state.owner_of("optimizer/fit/one/table/row_var", (6, 1))


def test_gradients_of_all_optimisers_are_dropped():
    phase = state_with(first=OPTIMIZERS["adam"], second=OPTIMIZERS["sgd"]).phases[0]
    phase.step(0)
    assert all(parameter.grad is not None for parameter in phase.model.parameters())
    phase.drop_gradients()
    assert all(parameter.grad is None for parameter in phase.model.parameters())
