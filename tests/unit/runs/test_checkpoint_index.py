import copy
import json
import shutil

import pytest
import torch

from diffmm_dist.errors import DamagedError, UserError
from diffmm_dist.runs.checkpoint_index import INDEX_FILE, index_sha256, read_index
from tests.support.builders import progress_at, run_checkpoints
from tests.support.damage import forge_state

TENSORS = {
    "table": torch.arange(12.0).view(3, 4),
    "half": torch.ones(2, dtype=torch.bfloat16),
    "ids": torch.arange(6).view(2, 3, 1),
    "flag": torch.tensor(True),
    "empty": torch.zeros(0, 4),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("checkpoints")
    checkpoints = run_checkpoints(root)
    checkpoints.save(TENSORS, progress_at(1))
    loaded = checkpoints.open("epoch-00001").tensors()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in TENSORS.items())
    return root / "epoch-00001"


def test_it_names_every_tensor_with_its_form(folder):
    entries = read(str(folder)).state_dict_metadata
    assert {name: (entry.properties.dtype, entry.size) for name, entry in entries.items()} == {
        name: (tensor.dtype, tensor.shape) for name, tensor in TENSORS.items()
    }


def damaged(folder, tmp_path, damage):
    index = json.loads((folder / INDEX_FILE).read_text())
    before = copy.deepcopy(index)
    damage(index)
    assert index != before
    (tmp_path / INDEX_FILE).write_text(json.dumps(index))
    return str(tmp_path)


def read(folder):
    """Read an index whose checksum is right, also where it was forged."""
    return read_index(str(folder), sha256=index_sha256(str(folder)))


def chunk(index, name="table"):
    return index["tensors"][name]["chunks"][0]


def two_halves(index, first, second):
    """Rows ``first`` and ``second`` of the table as its two chunks."""
    whole = chunk(index)
    index["tensors"]["table"]["chunks"] = [
        whole | {"offset": [start, 0], "size": [end - start, 4]} for start, end in (first, second)
    ]


def test_chunks_of_several_workers_in_any_order_are_one_table(folder, tmp_path):
    path = damaged(folder, tmp_path, lambda index: two_halves(index, (2, 3), (0, 2)))
    assert len(read(path).state_dict_metadata["table"].chunks) == 2


DAMAGE = {
    "no table": lambda index: index.pop("tensors"),
    "a list of tables": lambda index: index.update(tensors=[]),
    "a later form": lambda index: index.update(format=2),
    "no form": lambda index: index.pop("format"),
    "an unknown type": lambda index: index["tensors"]["table"].update(dtype="object"),
    "a type that is no word": lambda index: index["tensors"]["table"].update(dtype=["float32"]),
    "a negative size": lambda index: index["tensors"]["table"].update(size=[-3, 4]),
    "a size beyond all memory": lambda index: index["tensors"]["table"].update(size=[2**63, 4]),
    "a size that is a truth": lambda index: index["tensors"]["table"].update(size=[True, 4]),
    "a size that is a fraction": lambda index: index["tensors"]["table"].update(size=[3.5, 4]),
    "more rows than there are": lambda index: index["tensors"]["table"].update(size=[4, 4]),
    "fewer rows than there are": lambda index: index["tensors"]["table"].update(size=[2, 4]),
    "other columns": lambda index: index["tensors"]["table"].update(size=[3, 5]),
    "another number of dimensions": lambda index: index["tensors"]["table"].update(size=[3]),
    "a wider type than the bytes hold": lambda index: (
        index["tensors"]["table"].update(dtype="float64"),
        chunk(index).update(length=80),
    ),
    "no chunks": lambda index: index["tensors"]["table"].update(chunks=[]),
    "no chunk of a single value": lambda index: index["tensors"]["flag"].update(chunks=[]),
    "two chunks of a single value": lambda index: index["tensors"]["flag"]["chunks"].append(chunk(index, "flag")),
    "the same chunk twice": lambda index: index["tensors"]["table"]["chunks"].append(chunk(index)),
    "a gap": lambda index: two_halves(index, (0, 1), (2, 3)),
    "an overlap": lambda index: two_halves(index, (0, 2), (1, 3)),
    "an offset inside a row": lambda index: chunk(index).update(offset=[0, 1]),
    "an offset of too few dimensions": lambda index: chunk(index).update(offset=[0]),
    "a chunk of too few dimensions": lambda index: chunk(index).update(size=[3]),
    "a file elsewhere": lambda index: chunk(index).update(file="../epoch-00002/__0_0.distcp"),
    "an absolute file": lambda index: chunk(index).update(file="/etc/passwd"),
    "a file of another name": lambda index: chunk(index).update(file="state.json"),
    "a file with a line end": lambda index: chunk(index).update(file="__0_0.distcp\n"),
    "no file": lambda index: chunk(index).pop("file"),
    "bytes before the file": lambda index: chunk(index).update(start=-1),
    "too few bytes": lambda index: chunk(index).update(length=10),
    "a length that is a word": lambda index: chunk(index).update(length="800"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_one_sentence_that_names_the_place(kind, folder, tmp_path):
    path = damaged(folder, tmp_path, DAMAGE[kind])
    with pytest.raises(
        UserError, match=r"index\.json is damaged at '.+': .+; restore it, or let `train` go on without"
    ):
        read(path)


@pytest.mark.parametrize("content", [b"", b"{", b"null", b"[]", b"\x80\x05.", b'{"format": NaN, "tensors": {}}'])
def test_what_is_no_index_is_one_sentence(content, tmp_path):
    (tmp_path / INDEX_FILE).write_bytes(content)
    with pytest.raises(UserError, match=r"index\.json is damaged.*; restore it, or let `train` go on without"):
        read(str(tmp_path))


@pytest.mark.parametrize(
    "change",
    [{"start": 2**40}, {"start": 3}, {"length": 30_000}, {"file": "__7_0.distcp"}],
    ids=["beyond the file", "inside another archive", "longer than the file", "a file that is not there"],
)
def test_a_place_where_no_tensor_is_found_is_one_sentence(change, folder, tmp_path):
    copied = tmp_path / "epoch-00001"
    shutil.copytree(folder, copied)
    damaged(folder, copied, lambda index: chunk(index).update(change))
    forge_state(copied)
    with pytest.raises(DamagedError, match="epoch-00001/__._0.distcp .+; restore it, or let `train` go on without"):
        run_checkpoints(tmp_path).open("epoch-00001").tensors()
