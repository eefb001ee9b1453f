import json

import pytest

from diffmm_dist.bench.estimate import SHAPES, bench_memory
from diffmm_dist.bench.report import markdown
from diffmm_dist.errors import UserError

MIB = 2**20


def test_a_shape_that_is_not_there_is_refused_before_anything_is_measured(tmp_path):
    with pytest.raises(UserError, match=r"--shape itemss is none of demo, .*items") as refused:
        bench_memory(["demo", "itemss"], out=str(tmp_path / "memory.json"))
    assert "\n" not in str(refused.value)
    assert list(tmp_path.iterdir()) == []


def test_the_table_has_each_shape_with_its_ratio_and_those_of_its_phases(tmp_path):
    phases = {"read": {"estimated": 3 * MIB, "measured": 2 * MIB}, "denoise": {"estimated": MIB, "measured": 2 * MIB}}
    entry = {"what": "rows", "estimated": 900 * MIB, "measured": 1000 * MIB, "ratio": 0.9, "phase": "denoise"}
    shapes = {"small": entry | {"phases": phases}, "two workers": entry | {"ratio": 1.2, "phases": {}}}
    file = tmp_path / "memory.json"
    file.write_text(json.dumps({"command": "bench memory", "machine": {}, "memory": shapes}))
    lines = markdown([str(file)]).splitlines()
    assert "| small | rows | 900 | 1,000 | 0.90 | denoise | read 1.50, denoise 0.50 |" in lines
    assert "| two workers | rows | 900 | 1,000 | 1.20 | denoise | - |" in lines
    assert "* 2 shapes, ratios from 0.90 to 1.20" in lines


def test_the_shapes_differ_in_what_their_memory_is_for():
    assert len(SHAPES) >= 10
    assert len({shape.what for shape in SHAPES.values()}) >= 10
