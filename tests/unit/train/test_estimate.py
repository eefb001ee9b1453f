import pytest
import torch

from diffmm_dist.data.dataset import Dataset
from diffmm_dist.errors import UserError
from diffmm_dist.train.estimate import _denoising_step, available_memory, check_memory, estimate
from diffmm_dist.train.worker import run_worker
from tests.support.builders import small_config, synthetic_dataset


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return synthetic_dataset(tmp_path_factory.mktemp("data") / "d")


def needs(dataset, num_workers=1, **sections):
    return estimate(small_config(dataset, "run", **sections), Dataset.open(dataset).manifest, num_workers=num_workers)


def test_denoisers_and_tables_are_what_adam_keeps_of_them(dataset):
    one = needs(dataset, diffusion={"denoiser_hidden_dims": [1000]})
    assert one["denoisers"] == 2 * (40 * 2001) * 16
    assert one["tables"] == (60 + 40) * 8 * 16
    assert one["features"] == 40 * (6 + 4) * 4
    assert needs(dataset, data={"path": dataset, "modalities": ["visual"]})["features"] == 40 * 6 * 4
    assert "denoisers" not in needs(dataset, model={"name": "lightgcn"})


def test_what_is_sharded_shrinks_with_the_workers(dataset):
    one, four = needs(dataset), needs(dataset, num_workers=4)
    for name in ("tables", "graph", "propagation", "generated graphs", "features"):
        assert four[name] == pytest.approx(one[name] / 4, rel=0.05)
    assert one["halo"] == 0
    assert four["halo"] > 0


def test_denoisers_spread_over_the_items_shrink_too(dataset):
    sections = {"denoiser": {"sharding": "items"}, "diffusion": {"denoiser_hidden_dims": [100]}}
    one, four = needs(dataset, **sections), needs(dataset, num_workers=4, **sections)
    assert four["denoisers"] == one["denoisers"] / 4
    assert one["denoised rows"] == 0 < four["denoised rows"]
    whole = needs(dataset, num_workers=4, **sections | {"denoiser": {"sharding": "replicated"}})
    assert whole["denoisers"] == one["denoisers"] * 5 / 4  # and the message of all gradients


def test_a_step_holds_no_row_of_all_items_where_neither_noise_nor_products_need_one(dataset):
    def step(num_items, **denoiser):
        config = small_config(dataset, "run", denoiser=denoiser, diffusion={"denoiser_hidden_dims": [10]})
        return _denoising_step(config, num_items, groups=1)

    exact, small = {"noise": "exact", "products": "direct"}, {"noise": "hidden", "products": "gram"}
    rows = 64 * (10**6 - 10**5)
    assert step(10**6, **small) - step(10**5, **small) == 9 * 10**5 * 10 * 2 * 4
    assert step(10**6, **exact) - step(10**5, **exact) > rows * 3 * 4


def test_what_does_not_fit_is_refused_with_the_table():
    sizes = {"denoisers": 3 << 30, "tables": 1 << 30}
    line = check_memory(sizes, available=9 << 30, workers_here=2)
    assert line.startswith("a worker is estimated to need 4.00 GiB (denoisers 3.00, tables 1.00)")
    with pytest.raises(UserError, match=r"4\.00 GiB \(denoisers 3\.00, tables 1\.00\); 2 on this machine do not fit"):
        check_memory(sizes, available=7 << 30, workers_here=2)


def test_a_run_that_cannot_fit_reads_no_data(dataset, tmp_path):
    config = small_config(dataset, tmp_path / "run", diffusion={"denoiser_hidden_dims": [10**9]})
    with pytest.raises(UserError, match=r"do not fit .* lower diffusion\.denoiser_hidden_dims"):
        run_worker(config, stop_requested=lambda: False)


def test_available_memory_is_that_of_this_machine():
    assert 1 << 26 < available_memory(torch.device("cpu")) < 1 << 50
