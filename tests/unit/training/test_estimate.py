from itertools import pairwise

import pytest
import torch

from diffmm_dist.config.section import changed
from diffmm_dist.data.dataset import Dataset
from diffmm_dist.errors import UserError
from diffmm_dist.training.estimate import Estimate, check_memory, estimate, program_bytes, savings
from diffmm_dist.training.worker import run_worker
from tests.support.builders import small_config, synthetic_dataset

GIB = 2**30
PROGRAM = 300 << 20


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return synthetic_dataset(tmp_path_factory.mktemp("data") / "d")


@pytest.fixture(scope="module")
def manifest(dataset):
    return Dataset.open(dataset).manifest


def needs(dataset, manifest, num_workers=1, **sections):
    config = small_config(dataset, "run", **sections)
    return estimate(config, manifest, num_workers=num_workers, program=PROGRAM)


def larger(manifest, factor, *fields):
    """A manifest with some counts multiplied."""
    update = {name: getattr(manifest, name) * factor for name in fields if name.startswith("num_")}
    if "interactions" in fields:
        update["interactions"] = {
            split: tuple(file.model_copy(update={"rows": file.rows * factor}) for file in files)
            for split, files in manifest.interactions.items()
        }
    if "widths" in fields:
        update["modalities"] = {
            name: entry.model_copy(update={"width": entry.width * factor})
            for name, entry in manifest.modalities.items()
        }
    return manifest.model_copy(update=update)


def test_phases_and_parts_have_names_and_sizes(dataset, manifest):
    by_model = {name: needs(dataset, manifest, model={"name": name}) for name in ("diffmm", "lightgcn", "popularity")}
    assert list(by_model["diffmm"].phases) == ["read", "resume", "denoise", "rebuild", "recommend", "evaluate"]
    assert list(by_model["lightgcn"].phases) == ["read", "resume", "recommend", "evaluate"]
    assert list(by_model["popularity"].phases) == ["read", "resume", "evaluate"]
    for model, whole in by_model.items():
        for phase, parts in whole.phases.items():
            assert all(isinstance(size, int) and size >= 0 for size in parts.values()), (model, phase, parts)
        assert whole.total == max(sum(parts.values()) for parts in whole.phases.values())
        assert f"in phase '{whole.peak}' (program 0." in str(whole)


def test_the_peak_is_the_largest_phase_and_not_the_sum_of_all():
    whole = Estimate({"denoise": {"denoisers": 5, "tables": 1}, "recommend": {"denoisers": 3, "tables": 4}})
    assert (whole.peak, whole.total) == ("recommend", 7)


@pytest.mark.parametrize("model", ["diffmm", "lightgcn", "popularity"])
@pytest.mark.parametrize("what", ["num_users", "num_items", "interactions", "widths"])
def test_no_phase_shrinks_as_the_data_grow(dataset, manifest, model, what):
    before = needs(dataset, manifest, model={"name": model})
    for factor in (2, 1000):
        after = needs(dataset, larger(manifest, factor, what), model={"name": model})
        for phase, total in before.totals.items():
            assert after.totals[phase] >= total, phase
    if what != "widths" or model == "diffmm":
        assert after.total > before.total
    else:
        assert after == before  # only DiffMM reads features


@pytest.mark.parametrize(
    ("section", "key", "values"),
    [
        ("model", "embedding_dim", [8, 64, 512]),
        ("model", "num_layers", [0, 1, 2, 3]),
        ("model.diffusion", "denoiser_hidden_dims", [[16], [512], [512, 512], [512, 512, 1024]]),
        ("model.diffusion", "rebuild_topk", [1, 5, 40]),
        ("model.diffusion", "edge_keep_prob", [0.1, 0.5, 0.9]),
        ("train", "batch_size", [16, 64, 400]),
        ("eval", "batch_size", [8, 32, 60]),
        ("eval", "k", [[20], [20, 30], [20, 30, 40]]),
        ("model.contrast", "contrastive_weight", [0, 0.1]),
        ("data", "modalities", [["visual"], ["visual", "textual"]]),
    ],
)
def test_no_phase_shrinks_as_a_setting_grows(dataset, manifest, section, key, values):
    grown = larger(manifest, 400, "num_users", "num_items", "interactions")
    width = 64 if key == "num_layers" else 8  # with narrow tables the plans of batches need more than the layers
    config = small_config(dataset, "run", model={"denoiser": {"products": "gram"}, "embedding_dim": width})
    values = [tuple(value) if isinstance(value, list) else value for value in values]
    configs = [changed(config, {f"{section}.{key}": value}) for value in values]
    totals = [estimate(one, grown, num_workers=1, program=PROGRAM).totals for one in configs]
    for smaller, greater in pairwise(totals):
        assert all(greater[phase] >= smaller[phase] for phase in smaller)
    assert totals[-1] != totals[0]


def test_what_adam_keeps_of_denoisers_and_tables(dataset, manifest):
    whole = needs(dataset, manifest, model={"diffusion": {"denoiser_hidden_dims": [1000]}})
    denoisers, tables = 2 * (40 * 2001) * 4, (60 + 40 + 6 + 4) * 8 * 4
    for phase in ("denoise", "rebuild", "recommend", "evaluate"):
        assert whole.phases[phase]["denoisers"] == 3 * denoisers
        assert whole.phases[phase]["tables"] == 3 * tables
        assert whole.phases[phase]["features"] == 40 * (6 + 4) * 4
    assert whole.phases["denoise"]["gradients"] == denoisers
    assert whole.phases["resume"]["checkpoint"] >= denoisers + tables


def test_what_is_sharded_shrinks_with_the_workers(dataset, manifest):
    grown = larger(manifest, 100, "num_users", "num_items", "interactions")
    one, four = (needs(dataset, grown, num_workers=size).phases["rebuild"] for size in (1, 4))
    for name in ("tables", "interactions", "features"):
        assert four[name] == pytest.approx(one[name] / 4, rel=0.1)
    assert four["generated graphs"] < one["generated graphs"] * 0.7  # every worker has the halo of its own
    big = {"train": {"batch_size": 100_000}, "model": {"contrast": {"contrastive_weight": 0}}}
    steps = [needs(dataset, grown, num_workers=size, **big).phases["recommend"] for size in (1, 4)]
    assert [step["halo"] > 0 for step in steps] == [False, True]
    assert steps[1]["propagation"] == pytest.approx(steps[0]["propagation"] / 4, rel=0.01)


def test_denoisers_spread_over_the_items_shrink_too(dataset, manifest):
    def sections(sharding):
        return {"model": {"denoiser": {"sharding": sharding}, "diffusion": {"denoiser_hidden_dims": [100]}}}

    one, four = (needs(dataset, manifest, num_workers=size, **sections("items")).phases["denoise"] for size in (1, 4))
    assert four["denoisers"] == one["denoisers"] / 4
    assert one["denoised rows"] == 0 < four["denoised rows"]
    whole = needs(dataset, manifest, num_workers=4, **sections("replicated"))
    assert whole.phases["denoise"]["gradients"] == 2 * one["gradients"]  # and the message of all of them


def test_a_step_holds_no_row_of_all_items_where_neither_noise_nor_products_need_one(dataset, manifest):
    def denoise(factor, **denoiser):
        grown = larger(manifest, factor, "num_items")
        model = {"denoiser": denoiser, "diffusion": {"denoiser_hidden_dims": [10]}}
        parts = needs(dataset, grown, model=model).phases["denoise"]
        return parts["noisy rows"] + parts["outputs"]

    assert denoise(1000, noise="hidden", products="gram") == denoise(1, noise="hidden", products="gram") == 0
    assert denoise(1000, noise="exact", products="direct") == 3 * 60 * 40_000 * 4  # a batch of all users


def test_rounded_operands_and_dgl_need_room_of_their_own(dataset, manifest):
    grown = larger(manifest, 100, "num_users", "num_items", "interactions")
    rounded = {"train": {"precision": "bfloat16"}, "model": {"diffusion": {"denoiser_hidden_dims": [1000]}}}
    exact = {"model": {"diffusion": {"denoiser_hidden_dims": [1000]}}}
    parts = [needs(dataset, grown, **sections).phases["rebuild"]["reverse chains"] for sections in (exact, rounded)]
    assert parts[1] > parts[0]
    csr, dgl = (needs(dataset, grown, graph={"kernel": kernel}).phases["recommend"] for kernel in ("csr", "dgl"))
    for part in ("program", "graph", "generated graphs"):
        assert dgl[part] > csr[part]


def test_what_does_not_fit_is_refused_with_the_phase_and_what_to_lower(dataset, manifest):
    grown = larger(manifest, 1000, "num_users", "interactions")
    config = small_config(
        dataset, "run", train={"batch_size": 60_000}, model={"diffusion": {"denoiser_hidden_dims": [2000]}}
    )
    arguments = {"num_workers": 2, "workers_here": 2, "program": PROGRAM}
    fitting = check_memory(config, grown, available=99 * GIB, **arguments)
    assert "GiB in phase 'denoise' (" in fitting
    assert fitting.endswith("2 here, 99.59 GiB available")  # what the two workers have already counts
    with pytest.raises(UserError, match=r"2 on this machine do not fit the 1\.59 GiB it has: lower") as refused:
        check_memory(config, grown, available=GIB, **arguments)
    text = str(refused.value)
    whole = estimate(config, grown, num_workers=2, program=PROGRAM).total
    saved = savings(config, grown, num_workers=2, program=PROGRAM)
    assert [size for _, size in saved] == sorted((size for _, size in saved), reverse=True)
    assert f"{saved[0][0]} needs {saved[0][1] / GIB:.2f} GiB of the {whole / GIB:.2f}" in text
    named = [setting.split("=")[0] for setting, _ in saved]
    assert set(named) >= {"train.batch_size", "model.diffusion.denoiser_hidden_dims"}
    assert [text.index(setting) for setting, _ in saved] == sorted(text.index(setting) for setting, _ in saved)


def test_only_settings_of_the_model_are_named(dataset, manifest):
    grown = larger(manifest, 10_000, "num_users", "interactions")
    for model in ("lightgcn", "popularity"):
        config = small_config(
            dataset,
            "run",
            model={"name": model},
            train={"batch_size": 10**6},
        )
        with pytest.raises(UserError, match=r"or use more machines") as refused:
            check_memory(config, grown, num_workers=1, workers_here=1, available=1, program=PROGRAM)
        assert "diffusion" not in str(refused.value)
        assert "denoiser" not in str(refused.value)
        assert ("train.batch_size" in str(refused.value)) == (model == "lightgcn")


def test_a_run_that_cannot_fit_reads_no_data(dataset, tmp_path):
    config = small_config(dataset, tmp_path / "run", model={"diffusion": {"denoiser_hidden_dims": [10**9]}})
    with pytest.raises(
        UserError, match=r"do not fit .* lower .*model\.diffusion\.denoiser_hidden_dims=\[1000000000\] needs"
    ):
        run_worker(config, stop_requested=lambda: False)


def test_the_program_is_measured_where_the_estimate_is_made():
    held = torch.ones(20 << 20)
    with_it = program_bytes(torch.device("cpu"))
    assert with_it > held.nbytes


def test_what_the_allocator_keeps_grows_with_what_a_phase_frees_and_not_with_what_lives_on(dataset, manifest):
    def unfit(**sections):
        phases = needs(dataset, larger(manifest, 100, "num_users", "num_items", "interactions"), **sections).phases
        return {name: parts["kept by the allocator"] for name, parts in phases.items()}

    small, large = (unfit(train={"batch_size": size}) for size in (16, 600))
    assert large["recommend"] > small["recommend"]
    assert large["rebuild"] == small["rebuild"]
    assert small["read"] == 0  # nothing is freed that something else could have used
    kept_on = unfit(train={"batch_size": 16}, model={"diffusion": {"edge_keep_prob": 1.0, "rebuild_topk": 40}})
    assert kept_on["evaluate"] == small["evaluate"]


def test_while_features_are_read_they_alone_are_held(dataset, manifest):
    wide = larger(manifest, 1000, "widths")
    assert needs(dataset, wide).phases["read"]["features"] == 40 * 10_000 * 4
    only = needs(dataset, wide, data={"path": dataset, "modalities": ["textual"]}).phases["read"]
    assert only["features"] == 40 * 4000 * 4
    assert "features" not in needs(dataset, wide, model={"name": "lightgcn"}).phases["read"]


def test_a_modality_that_is_none_is_left_to_whoever_reads_the_data(dataset, manifest):
    assert needs(dataset, manifest, data={"path": dataset, "modalities": ["textual", "visul"]}) == needs(
        dataset, manifest, data={"path": dataset, "modalities": ["textual"]}
    )
