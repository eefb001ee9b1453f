"""Explanations: paths of attended facts, of a bundle made by hand and of a trained run."""

import json
import xml.etree.ElementTree as ET

import numpy as np
import pyarrow as pa
import pytest

from diffmm_dist.bundles.bundle import Bundle, read_bundle
from diffmm_dist.bundles.rows import Rows
from diffmm_dist.errors import DamagedError, UserError
from diffmm_dist.exports.bundle import export_bundle
from diffmm_dist.exports.explain import explain, picture
from diffmm_dist.exports.knowledge import BundledKnowledge, read_knowledge
from diffmm_dist.training.trained import load_trained
from diffmm_dist.training.worker import run_worker
from tests.support.builders import small_config, synthetic_dataset
from tests.support.bundles import marker_of, pairs_of


def by_hand():
    """Users a and b, films 0 to 2, a person and <a place>; a knows film 0, b none."""
    ids = [pa.chunked_array([pa.array(names)]) for names in (["a", "b"], ["film 0", "film 1", "film 2"])]
    tables = (np.array([[1, 2], [0, 0]], np.float32), np.array([[1, 1], [2, 0.5], [0, 0]], np.float32))
    seen = pairs_of([0], [0], num_rows=2, num_items=3)
    bundle = Bundle(*ids, *(Rows([table], 2) for table in tables), seen, marker_of(2, 3, 2))
    facts = [(0, 0, 3, 0.5), (0, 1, 4, 0.5), (1, 0, 3, 0.6), (1, 1, 4, 0.1), (1, 2, 0, 0.3), (3, 2, 0, 1.0)]
    heads, relations, tails, attention = (np.array(column) for column in zip(*facts, strict=True))
    names = [pa.chunked_array([pa.array(names)]) for names in (["person", "<a place>"], ["by", "in"])]
    return bundle, BundledKnowledge(*names, heads, relations, tails, attention.astype(np.float32))


def test_paths_come_by_the_product_of_their_attention():
    found = explain(*by_hand(), "a", "film 1", most=10)
    assert (found.score, found.num_known, found.num_paths) == (3.0, 1, 3)
    assert [(path.known, path.shared) for path in found.paths] == [
        ("film 0", "person"), ("film 0", None), ("film 0", "<a place>"),
    ]  # fmt: skip
    assert [path.attention for path in found.paths] == pytest.approx([0.3, 0.3, 0.05])
    assert [str(step) for step in found.paths[0].steps] == ["by 0.600", "by 0.500"]
    assert str(found.paths[1].steps[0]) == "~by 0.300"  # an inverse relation
    assert len(explain(*by_hand(), "a", "film 1", most=1).paths) == 1


def test_nothing_to_say():
    for user, item in (("b", "film 1"), ("a", "film 2")):
        found = explain(*by_hand(), user, item, most=5)
        assert (found.num_paths, found.paths) == (0, [])
        ET.fromstring(picture(found))


def test_an_item_that_the_user_knows_does_not_explain_itself():
    assert explain(*by_hand(), "a", "film 0", most=5).num_paths == 0


def test_the_picture_is_svg_whatever_the_names_are():
    drawing = ET.fromstring(picture(explain(*by_hand(), "a", "film 1", most=10)))
    texts = {element.text for element in drawing.iter("{http://www.w3.org/2000/svg}text")}
    assert {"film 0", "film 1", "person", "<a place>", "by 0.60"} <= texts
    assert len(list(drawing.iter("{http://www.w3.org/2000/svg}line"))) == 5


@pytest.mark.parametrize(
    ("user", "item", "what"), [("c", "film 1", "no user 'c'"), ("a", "film 9", "no item 'film 9'")]
)
def test_unknown_ids(user, item, what):
    with pytest.raises(UserError, match=what):
        explain(*by_hand(), user, item, most=5)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    data = synthetic_dataset(folder / "data", knowledge=True)
    for name in ("diffkg", "lightgcn"):
        config = small_config(
            data, folder / name, model={"name": name}, train={"epochs": 1},
            monitoring={"tensorboard": False},
        )  # fmt: skip
        run_worker(config, stop_requested=lambda: False, show_progress=False)
        export_bundle(load_trained(str(folder / name)), str(folder / f"{name}-bundle"))
    return folder / "diffkg-bundle"


def test_a_bundle_has_entities_relations_and_facts(bundle):
    facts = read_knowledge(str(bundle))
    assert facts.entity_ids.to_pylist() == [f"entity_{n}" for n in range(20)]
    assert "mentions" in facts.relation_ids.to_pylist()
    sums = np.bincount(facts.heads, facts.attention)
    assert sums[np.unique(facts.heads)] == pytest.approx(1, rel=1e-5)
    assert json.loads((bundle / "bundle.json").read_text())["version"] == 2
    assert read_bundle(str(bundle)).item_rows.array().shape == (40, 8)
    table = pa.ipc.open_file(bundle / "entities.arrow").read_all()
    assert table.schema.field("embedding").type == pa.list_(pa.float32(), 8)


def test_a_bundle_without_a_knowledge_graph_explains_nothing(bundle, run_cli):
    plain = bundle.parent / "lightgcn-bundle"
    status, _, err = run_cli("explain", plain, "--user", "user_1", "--item", "item_1")
    assert status == 1
    assert "has no knowledge graph, since its model.name=lightgcn reads none" in err


def test_damage_is_noticed(bundle, tmp_path):
    content = (bundle / "facts.arrow").read_bytes()
    copy = tmp_path / "b"
    copy.mkdir()
    for file in bundle.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    place = len(content) // 2
    (copy / "facts.arrow").write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
    with pytest.raises(DamagedError, match=r"facts\.arrow"):
        read_knowledge(str(copy))


def test_the_command(bundle, run_cli, tmp_path):
    status, out, err = run_cli(
        "explain", bundle, "--user", "user_1", "--item", "item_3", "--picture", tmp_path / "p.svg"
    )
    assert status == 0, err
    assert "user user_1, item item_3: score" in out
    ET.parse(tmp_path / "p.svg")
    status, _, err = run_cli("explain", bundle, "--user", "user_1", "--item", "item_3", "--picture", tmp_path / "p.png")
    assert (status, "must end in .svg" in err) == (1, True)
