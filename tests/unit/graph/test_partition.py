import os
import sys
from pathlib import Path

import pytest
import torch

from diffmm_dist.errors import UserError
from diffmm_dist.graph import metis
from diffmm_dist.graph.partition import (
    Links,
    Parts,
    _assign_in,
    _graph,
    links_report,
    metis_parts,
    partition_report,
    random_parts,
)
from diffmm_dist.sparse import CSR
from tests.support.builders import random_pairs
from tests.support.optional import dgl_or_skip, metis_or_skip


def two_islands():
    """Users 0-99 with items 0-99, users 100-199 with items 100-199, and one edge between the islands."""
    users = torch.arange(200).repeat_interleave(5)
    items = (torch.arange(1000) * 3) % 100 + (users // 100) * 100
    pairs = torch.cat([torch.stack([users, items]), torch.tensor([[0], [199]])], dim=1)
    return CSR.from_pairs(pairs[0], pairs[1], num_rows=200, num_columns=200)


def test_report_equals_counting_by_hand():
    pairs = CSR.from_pairs(torch.tensor([0, 0, 1, 2, 2]), torch.tensor([0, 2, 1, 0, 2]), num_rows=4, num_columns=3)
    parts = Parts(torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 1]), 2)
    # User 0 and user 1 (part 0) need items 2 and 1 of part 1; user 2 (part 1) needs item 0. Item 0 (part 0) has user
    # 2 of part 1 beside it; items 1 and 2 (part 1) have users 1 and 0.
    assert partition_report(pairs, parts) == {
        "cut_edges": 3, "cut_share": 0.6,
        "halo_rows_mean": 3, "halo_rows_max": 3, "item_halo_rows_mean": 1.5, "item_halo_rows_max": 2,
        "users_balance": 1, "items_balance": pytest.approx(4 / 3), "edges_balance": pytest.approx(6 / 5),
    }  # fmt: skip


@pytest.mark.parametrize("num_parts", [1, 2, 3, 7])
def test_random_parts_are_even_and_seeded(num_parts):
    pairs = random_pairs(21, 10)
    parts = random_parts(pairs, num_parts, seed=3)
    for part, count in ((parts.users, 21), (parts.items, 10)):
        sizes = torch.bincount(part, minlength=num_parts)
        assert int(sizes.max() - sizes.min()) <= 1
        assert int(sizes.sum()) == count
    assert torch.equal(parts.users, random_parts(pairs, num_parts, seed=3).users)
    if num_parts > 1:
        assert not torch.equal(parts.users, random_parts(pairs, num_parts, seed=4).users)


@pytest.fixture(params=["dgl", "pymetis"])
def library(request, monkeypatch):
    """Each of the libraries that bring METIS, alone."""
    name = request.param
    pytest.importorskip("pymetis", reason="pymetis is not installed") if name == "pymetis" else dgl_or_skip()
    if name == "pymetis":
        monkeypatch.setattr(metis, "import_dgl", no_dgl)
    return name


def no_dgl(**_):
    raise UserError("DGL cannot be imported")


def metis_cut(pairs, num_parts, links=None):
    """The parts of users, items and further nodes, found in this process: a patch does not reach the one of its own."""
    found, library = metis.assign(_graph(pairs, links), num_parts)
    sizes = [pairs.num_rows, pairs.num_columns, len(found) - pairs.num_rows - pairs.num_columns]
    users, items, further = torch.from_numpy(found).split(sizes)
    return Parts(users, items, num_parts), further, library


def test_metis_finds_the_islands(library):
    parts, _, name = metis_cut(two_islands(), 2)
    assert name == metis.library()
    assert name.lower().startswith(f"metis of {library} ")
    report = partition_report(two_islands(), parts)
    assert (
        report["cut_edges"] < 0.1 * partition_report(two_islands(), random_parts(two_islands(), 2, seed=1))["cut_edges"]
    )
    assert max(report["users_balance"], report["items_balance"], report["edges_balance"]) < 1.1


def clustered(num_users, num_items, clusters, seed=0):
    """Users with ten items each, nine of ten from their own cluster."""
    draw = torch.Generator().manual_seed(seed)
    users = torch.arange(num_users).repeat_interleave(10)
    own = torch.rand(len(users), generator=draw) < 0.9
    items = torch.randint(num_items, (len(users),), generator=draw)
    items = torch.where(own, items // clusters * clusters + users % clusters, items).clamp(max=num_items - 1)
    pairs = torch.unique(torch.stack([users, items]), dim=1)
    return CSR.from_pairs(pairs[0], pairs[1], num_rows=num_users, num_columns=num_items)


@pytest.mark.parametrize("num_parts", [1, 2, 3, 8])
def test_metis_keeps_its_promises(library, num_parts):
    """Users, items, edges, and further nodes with links that repeat and lead to themselves, are spread evenly."""
    pairs = clustered(2000, 800, 8)
    generator = torch.Generator().manual_seed(1)
    heads = torch.randint(800, (4000,), generator=generator)
    tails = torch.where(torch.arange(4000) % 7 == 0, heads, 800 + heads // 8 * 8 % 400 + heads % 8)
    links = Links(torch.cat([heads, heads]), torch.cat([tails, tails]), 400)
    parts, further, _ = metis_cut(pairs, num_parts, links)
    report = partition_report(pairs, parts)
    assert max(report["users_balance"], report["items_balance"]) < 1.05
    assert report["edges_balance"] < 1.1
    assert links_report(links, parts, further)["further_balance"] < 1.1
    if num_parts > 1:
        random = partition_report(pairs, random_parts(pairs, num_parts, seed=1))
        assert report["cut_share"] < 0.5 * random["cut_share"]


def test_without_either_library_it_is_said(monkeypatch):
    monkeypatch.setattr(metis, "import_dgl", no_dgl)
    monkeypatch.setitem(sys.modules, "pymetis", None)
    with pytest.raises(UserError, match="DGL cannot be imported"):
        metis.library()


def test_what_memory_held_before_does_not_change_what_metis_finds(monkeypatch):
    """METIS reads memory that it has not written, so every process would cut by what it happens to hold."""
    metis_or_skip()
    pairs = random_pairs(60, 40)
    found = []
    for memory, number in (("tcache_count=7", "1"), ("tcache_count=0:glibc.malloc.perturb=170", "2")):
        monkeypatch.setenv("GLIBC_TUNABLES", f"glibc.malloc.{memory}")
        monkeypatch.setenv("OMP_NUM_THREADS", number)
        monkeypatch.setenv("PYTHONHASHSEED", number)
        found.append(metis_parts(pairs, 7).parts)
    assert torch.equal(found[0].users, found[1].users)
    assert torch.equal(found[0].items, found[1].items)


def test_metis_leaves_nothing_where_the_command_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # and back, when the test ends
    monkeypatch.setattr(metis, "assign", lambda *_: Path("metis1.0").write_text("of a large graph"))
    aside = tmp_path / "aside"
    aside.mkdir()
    _assign_in(str(aside), None, 2)
    assert os.listdir(tmp_path) == ["aside"]
    assert os.listdir(aside) == ["metis1.0"]


def test_no_edges():
    pairs = random_pairs(4, 3, share=0.0)
    report = partition_report(pairs, random_parts(pairs, 2, seed=0))
    assert report["cut_share"] == report["halo_rows_max"] == 0
