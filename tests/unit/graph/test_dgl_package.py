"""DGL beside a torch that its package ``graphbolt`` was not built for."""

import inspect
import subprocess
import sys

import pytest
import torch

from diffmm_dist.errors import UserError
from diffmm_dist.graph import dgl_package
from tests.support.hidden import without
from tests.support.optional import dgl_or_skip


def test_what_we_use_of_it_works():
    dgl = dgl_or_skip()
    graph = dgl.heterograph(
        {("user", "likes", "item"): ("csc", (torch.tensor([0, 1, 3]), torch.tensor([0, 0, 1]), []))}
    )
    weights = torch.tensor([[2.0], [3.0], [5.0]])
    summed = dgl.ops.u_mul_e_sum(graph, torch.eye(2), weights)
    assert torch.equal(summed, torch.tensor([[2.0, 0.0], [3.0, 5.0]]))
    assert torch.equal(dgl.reverse(graph).in_degrees(), torch.tensor([2, 1]))


def test_only_graphbolt_is_stood_in_for():
    dgl = dgl_or_skip()
    stands = {name for name, module in list(sys.modules.items()) if type(module) is dgl_package._StandIn}
    assert stands == {"dgl.graphbolt"}
    assert "graphbolt" not in vars(dgl) or type(dgl.graphbolt) is dgl_package._StandIn


def test_the_stand_in_bears_being_looked_at_and_not_being_used():
    """torch and inspect go through all modules, and ask each for dunder names."""
    stand_in = dgl_package._StandIn("dgl.graphbolt")
    assert not hasattr(stand_in, "__file__")
    assert not hasattr(stand_in, "__wrapped__")
    assert inspect.getmodule(stand_in) is None or inspect.ismodule(stand_in)
    assert issubclass(type("Ours", (stand_in.FusedCSCSamplingGraph,), {}), stand_in.__getattr__("X").__mro__[-1])
    assert not isinstance(object(), stand_in.FusedCSCSamplingGraph)
    with pytest.raises(TypeError):
        stand_in.load_from_shared_memory("graph")


def test_a_dgl_that_somebody_has_imported_is_left_alone(monkeypatch):
    dgl_or_skip()
    monkeypatch.setitem(sys.modules, "dgl.graphbolt", theirs := object())
    dgl_package.import_dgl()
    assert sys.modules["dgl.graphbolt"] is theirs


def test_a_failed_import_leaves_nothing_and_says_what_to_install(tmp_path):
    script = (
        "import sys\n"
        "from diffmm_dist.graph.dgl_package import import_dgl\n"
        "try:\n    import_dgl()\nexcept Exception as error:\n    print(type(error).__name__, error)\n"
        "print('dgl.graphbolt' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], env=without(tmp_path, "dgl"), capture_output=True, text=True, check=True
    )
    first, last = done.stdout.splitlines()
    assert first.startswith(UserError.__name__)
    assert "install dgl==2.1.0 on Python 3.10 to 3.12, or set graph.kernel=csr" in first
    assert last == "False"
