import json
import math
from dataclasses import replace
from importlib import import_module

import pytest
import torch
from typer.testing import CliRunner

from diffmm_dist.bench import growth, operations
from diffmm_dist.bench.compare import compare
from diffmm_dist.bench.epoch import bench_epoch
from diffmm_dist.bench.memory import extra_mib
from diffmm_dist.bench.operations import Operation, Variant, bench_case, measure, open_device, parse_size
from diffmm_dist.bench.plain import is_affordable
from diffmm_dist.bench.problems import power_law_knowledge, power_law_rows
from diffmm_dist.bench.profile import bench_profile
from diffmm_dist.bench.report import markdown
from diffmm_dist.cli_bench import bench_app
from diffmm_dist.errors import UserError
from diffmm_dist.parallel.ranges import Ownership
from diffmm_dist.parallel.shard import AllRows
from tests.support.builders import small_config, synthetic_dataset

CPU = torch.device("cpu")
SIZES = {
    "denoise": "tiktok,batch=4,items=10,hidden=3,dim=2,per_user=2",
    "rebuild": "tiktok,users=5,items=10,hidden=3,timesteps=4,batch=2,per_user=2",
    "contrast": "tiktok,nodes=30,batch=20,dim=4",
    "evaluate": "tiktok,users=7,items=20,dim=4,topk=18,batch=3,per_user=4",
    "propagate": "tiktok,users=20,items=10,draws=60,dim=4",
}


@pytest.fixture(autouse=True)
def small_probes(monkeypatch):
    monkeypatch.setattr(operations, "GEMM_WIDTH", 32)
    monkeypatch.setattr(operations, "COPY_MIB", 1)


def case_of(name):
    return import_module(f"diffmm_dist.bench.{name}").CASE


def variants_of(name):
    case = case_of(name)
    made = case.operations(parse_size(case.presets, SIZES[name]), CPU)
    return {operation.name: dict(operation.variants) for operation in made}


def run(name, out, sizes=None):
    bench_case(case_of(name), sizes or [SIZES[name]], repeats=2, out=str(out), threads=1)
    return json.loads(out.read_text())


@pytest.mark.parametrize("name", SIZES)
def test_every_case_writes_its_fields(tmp_path, name):
    document = run(name, tmp_path / "out.json")
    assert (document["case"], document["repeats"], document["machine"]["device"]) == (name, 2, "cpu")
    (entry,) = document["sizes"]
    assert entry["size"] == SIZES[name]
    assert set(entry["values"].values()) >= {int(word.split("=")[1]) for word in SIZES[name].split(",")[1:]}
    for operation in entry["operations"].values():
        assert min(operation["probes"]["gemm"]["gflop_per_s"], operation["probes"]["copy"]["gb_per_s"]) > 0
        variants = operation["variants"]
        assert next(iter(variants.values()))["before_over_after"] == 1
        for result in variants.values():
            assert 0 < result["seconds"]["min"] <= result["seconds"]["median"] <= result["seconds"]["max"]
            assert min(result["flop"], result["bytes"], result["before_over_after"]) > 0
            assert min(result["share_of_gemm_peak"], result["share_of_copy_peak"]) > 0
            assert result["extra_mib"] is None or result["extra_mib"] >= 0
    page = markdown([str(tmp_path / "out.json")])
    for operation, result in entry["operations"].items():
        assert f"| size | {operation} | s (least to most) |" in page
        assert all(f"| {SIZES[name]} | {variant} | " in page for variant in result["variants"])


def test_operations_and_bytes_of_a_denoising_step():
    step, output = variants_of("denoise").values()
    step.pop("plain", None)  # B = 4, I = 10, h = 3, d = 2
    gram = 4 * 10 * 3 * (3 + 2) + 4 * 4 * 3**2 + 6 * 4 * 3 * 2
    direct = 6 * 4 * 10 * 3 + 4 * 4 * 10 * 2
    assert {name: variant.flop for name, variant in output.items()} == {"gram": gram, "direct": direct}
    into = 4 * 4 * 10 * 3
    hidden = 4 * 10 * 3**2 + 4 * 4 * 3**2 + 3**3
    assert {name: variant.flop for name, variant in step.items()} == {
        "ours": into + gram,
        "products=direct": into + direct,
        "products=gram": into + gram,
        "noise=hidden": hidden + gram,
    }
    weights, gram_weights = 2 * 10 * 3, 3 * 10 * 3 + 2 * 10 * 2
    assert step["products=gram"].bytes == 4 * (3 * 4 * 10 + weights + gram_weights)
    assert step["products=direct"].bytes == 4 * (3 * 4 * 10 + weights + 6 * 4 * 10 + gram_weights)


def test_operations_and_bytes_of_a_rebuild():
    ours, product, *_ = variants_of("rebuild")["rebuild"].values()  # U = 5 in 3 batches, I = 10, h = 3, T = 4
    assert product.flop == 2 * 5 * 10 * 3
    assert ours.flop == product.flop + 2 * 10 * 3**2 + 2 * 3 * 5 * 3**2
    assert product.bytes == 4 * 3 * 10 * 3
    assert ours.bytes == product.bytes + 4 * 2 * 10 * 3


def test_operations_of_the_other_cases():
    contrast = case_of("contrast").operations(parse_size(case_of("contrast").presets, SIZES["contrast"]), CPU)
    (operation,) = contrast
    anchors = operation.facts()["anchors"]
    assert {variant.flop for variant in operation.variants.values()} == {6 * anchors * 30 * 4}
    assert operation.variants["dense log-softmax"].bytes == 4 * 7 * anchors * 30
    assert variants_of("evaluate")["ranking"]["ours"].flop == 2 * 7 * 20 * 4
    edges = power_law_rows(20, 10, 60, CPU).num_entries
    variants = variants_of("propagate")["propagation"]
    assert variants["csr"].flop == variants["torch COO"].flop
    assert variants["torch COO"].flop == 2 * 2 * (2 * edges + 30) * 4


def test_the_ways_of_an_operation_agree():
    denoise = import_module("diffmm_dist.bench.denoise")
    problem = denoise.Problem(parse_size(denoise.PRESETS, SIZES["denoise"]), CPU)
    for mine, other in zip(problem.output_side("gram"), problem.output_side("direct"), strict=True):
        torch.testing.assert_close(mine, other)
    contrast = import_module("diffmm_dist.bench.contrast")
    problem = contrast.Problem(parse_size(contrast.PRESETS, SIZES["contrast"]), CPU)
    assert max(problem.relative_differences().values()) < 1e-5
    variants = variants_of("propagate")["propagation"]
    for gradients in zip(*(variant.call() for variant in variants.values()), strict=True):
        for gradient in gradients[1:]:
            torch.testing.assert_close(gradient, gradients[0])


def test_the_plain_twin_takes_part(tmp_path):
    step = variants_of("denoise")["denoising step"]["plain"]  # B = 4, I = 10, h = 3, d = 2
    assert step.flop == 10 * 4 * 10 * 3 + 6 * 4 * 10 * 2
    assert variants_of("rebuild")["rebuild"]["plain"].flop == 4 * 4 * 5 * 10 * 3  # T = U - 1 = 4
    facts = {
        name: run(name, tmp_path / f"{name}.json", [size])["sizes"][0]["operations"][operation]["facts"]
        for name, operation, size in (
            ("rebuild", "rebuild", SIZES["rebuild"]),
            ("evaluate", "evaluation", f"{SIZES['evaluate']},topk=5"),
        )
    }
    assert facts["rebuild"] == {"same_edges": 1}
    assert set(facts["evaluate"]) == {"difference_recall@5", "difference_ndcg@5"}
    assert max(facts["evaluate"].values()) < 1e-6


def test_the_plain_twin_is_left_out_where_it_would_not_fit():
    assert is_affordable(CPU, num_values=1e6)
    assert not is_affordable(CPU, num_values=1e10)
    assert not is_affordable(torch.device("cuda"), num_values=1)


def test_faiss_gives_the_same_lists(tmp_path):
    pytest.importorskip("faiss", reason="faiss-cpu is not installed")
    document = run("evaluate", tmp_path / "out.json")  # 18 places for at most 20 - 4 items
    facts = document["sizes"][0]["operations"]["ranking"]["facts"]
    assert facts == {"same_lists": True, "same_items": 1}


def test_different_lists_are_an_error_and_are_written(tmp_path):
    entry = {"size": "tiny", "operations": {"ranking": {"facts": {"same_lists": False}}}}
    with pytest.raises(UserError, match="the variants of 'ranking' at size tiny give different lists"):
        operations.write_results(str(tmp_path / "out.json"), "evaluate", [entry], repeats=1, device=CPU)
    assert (tmp_path / "out.json").exists()


def test_sizes_are_presets_and_changes():
    presets = case_of("contrast").presets
    assert parse_size(presets, "large") == presets["large"]
    assert parse_size(presets, "large,dim=32").dim == 32
    assert parse_size(presets, "nodes=10,dim=32").batch == presets["tiktok"].batch
    for text, message in (
        ("largee", "'largee' is none of tiktok, large; did you mean 'large'?"),
        ("large,dims=3", "'dims' is none of nodes, batch, dim; did you mean 'dim'?"),
        ("dim=0", "dim must be a whole number of at least 1, such as dim=100"),
        ("dim=x", "dim must be a whole number"),
    ):
        with pytest.raises(UserError, match=message.replace("?", r"\?")):
            parse_size(presets, text)


def test_a_device_must_be_there(monkeypatch):
    assert open_device("cpu") == CPU
    with pytest.raises(UserError, match="--device tpu is none of cpu, cuda"):
        open_device("tpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="--device cuda needs a GPU"):
        open_device("cuda")


def test_ratios_are_taken_inside_a_turn(monkeypatch):
    turns = {"a": [1.0, 2.0, 4.0], "b": [2.0, 8.0, 4.0], "probe: product": [4.0] * 3, "probe: copy": [8.0, 16.0, 32.0]}
    monkeypatch.setattr(operations, "take_turns", lambda cases, repeats: turns)
    nothing = Variant(lambda: None, 32**3, 2**20)
    variants = measure(Operation("x", {"a": nothing, "b": nothing}), repeats=3, device=CPU)["variants"]
    assert variants["b"]["before_over_after"] == 2
    assert variants["a"]["share_of_gemm_peak"] == 0.25  # half the operations of the product, in twice its time
    assert variants["a"]["share_of_copy_peak"] == 1


def test_extra_memory_is_what_a_call_takes():
    extra = extra_mib(lambda: torch.ones(2**24), CPU)
    if extra is None:
        pytest.skip("the peak cannot be reset here")
    assert 60 < extra < 80
    assert extra_mib(lambda: None, CPU) < 8


def test_an_epoch_is_timed_by_phase(tmp_path):
    config = small_config(synthetic_dataset(tmp_path / "d"), tmp_path / "run")
    bench_epoch(config, repeats=1, out=str(tmp_path / "e.json"))
    (entry,) = json.loads((tmp_path / "e.json").read_text())["sizes"]
    variants = entry["operations"]["epoch"]["variants"]
    assert list(variants) == ["denoise", "rebuild", "recommend"]
    assert variants["rebuild"]["flop"] == 2 * 2 * 60 * 40 * 16
    assert "before_over_after" not in variants["rebuild"]
    assert not (tmp_path / "run").exists()
    assert "| epoch | s (least to most) |" in markdown([str(tmp_path / "e.json")])


def test_an_epoch_of_a_model_without_phases_is_refused(tmp_path):
    popularity = small_config(synthetic_dataset(tmp_path / "d"), tmp_path / "run", model={"name": "popularity"})
    with pytest.raises(UserError, match="model.name=popularity has no phases of training to measure; choose another"):
        bench_epoch(popularity, repeats=1, out=str(tmp_path / "e.json"))


def test_a_profile_lists_the_operators_of_each_phase(tmp_path):
    config = small_config(synthetic_dataset(tmp_path / "d"), tmp_path / "run", train={"batch_size": 16})
    text = bench_profile(config, num_steps=2, out=str(tmp_path / "p.txt"))
    assert (tmp_path / "p.txt").read_text() == text
    tables = text.split("\n\n")[1:]
    assert [table.split(":")[0] for table in tables] == ["denoise", "rebuild", "recommend"]
    for table in tables:
        shares = [float(line.split()[-1].rstrip("%")) for line in table.splitlines()[2:]]
        assert shares == sorted(shares, reverse=True)
        assert 30 < sum(shares) < 100.1
    assert not (tmp_path / "run").exists()


def test_growth_is_measured_and_drawn(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    monkeypatch.setattr(growth, "FACTORS", {"users": (1, 2), "modalities": (1, 2)})
    config = small_config("none", tmp_path / "run")
    base = growth.GrowthSize(users=40, items=30, interactions=90, modalities=1, hidden=8)
    out, plot = tmp_path / "g.json", tmp_path / "g.svg"
    growth.bench_growth(config, str(out), repeats=2, base=base, plot=str(plot))
    measured = json.loads(out.read_text())["growth"]
    assert measured["users"]["values"] == [40, 80]
    assert list(measured["users"]["operations"]) == ["denoise", "rebuild", "recommend", "rank"]
    result = measured["modalities"]["operations"]["denoise"]
    seconds = result["seconds"]
    assert result["exponent"] == pytest.approx(math.log2(seconds[1] / seconds[0]))
    assert "what grows" in markdown([str(out)])
    assert "</svg>" in plot.read_text()
    lightgcn = small_config("none", tmp_path / "run", model={"name": "lightgcn"})
    growth.bench_growth(lightgcn, str(out), repeats=1, base=base)
    assert list(json.loads(out.read_text())["growth"]) == ["users"]
    monkeypatch.setattr(growth, "FACTORS", {"entities": (1, 2), "facts": (1, 2), "modalities": (1, 2)})
    diffkg = small_config("none", tmp_path / "run", model={"name": "diffkg"})
    growth.bench_growth(diffkg, str(out), repeats=1, base=replace(base, entities=20, facts=50))
    measured = json.loads(out.read_text())["growth"]
    assert {name: one["values"] for name, one in measured.items()} == {"entities": [20, 40], "facts": [50, 100]}
    assert list(measured["facts"]["operations"]) == ["denoise", "rebuild", "recommend", "rank"]


def test_random_facts_join_items_and_entities():
    items, entities = (AllRows(Ownership.even(n, rank=0, size=1), torch.arange(n)) for n in (30, 20))
    knowledge = power_law_knowledge(items, entities, 100)
    pairs = knowledge.facts.pairs
    assert (knowledge.num_nodes, pairs.num_rows) == (50, 50)
    assert 50 < pairs.num_entries <= 200
    assert ((pairs.row_ids < 30) != (pairs.indices < 30)).all()


def test_the_exponent_of_a_power_law():
    assert growth.exponent([1, 2, 4, 8], [3.0, 12.0, 48.0, 192.0]) == pytest.approx(2)


def test_two_files_are_compared(tmp_path):
    document = run("contrast", tmp_path / "a.json")
    operation = document["sizes"][0]["operations"]["contrastive term"]
    ours = operation["variants"]["ours"]["seconds"]["median"]
    operation["variants"]["ours"]["seconds"]["median"] = ours / 4
    operation["probes"]["gemm"]["seconds"]["median"] /= 2
    del operation["variants"]["dense log-softmax"]
    (tmp_path / "b.json").write_text(json.dumps(document))
    lines = compare(str(tmp_path / "a.json"), str(tmp_path / "b.json")).splitlines()
    assert len(lines) == 3
    wanted = ["nodes 30, batch 20, dim 4", "contrastive term", "ours", f"{ours:.4g}", f"{ours / 4:.4g}", "4.00", "2.00"]
    assert lines[2].strip("| ").split(" | ") == wanted


def test_files_that_are_not_alike_are_an_error(tmp_path):
    a, b, c, d = (tmp_path / f"{name}.json" for name in "abcd")
    run("contrast", a)
    run("rebuild", b)
    run("contrast", c, sizes=["nodes=31,batch=20,dim=4"])
    d.write_text("{}")
    for other, message in (
        (b, "is of bench contrast and .* of bench rebuild; compare files of one case"),
        (c, "have no variant at the same size in common; measure the same sizes"),
        (d, "is damaged at 'command': .* give a file written by bench denoise, .* or threads"),
    ):
        with pytest.raises(UserError, match=message):
            compare(str(a), str(other))


def test_the_commands(tmp_path):
    out = str(tmp_path / "out.json")
    for name, size in SIZES.items():
        result = CliRunner().invoke(bench_app, [name, "--size", size, "--repeats", "1", "--threads", "1", "--out", out])
        assert result.exit_code == 0, result.output
        assert "s (least to most)" in result.output
    shown = CliRunner().invoke(bench_app, ["compare", out, out])
    assert "| 1.00 | 1.00 |" in shown.output
    refused = CliRunner().invoke(bench_app, ["propagate", "datasets/x", "--size", "large", "--out", out])
    assert isinstance(refused.exception, UserError)
