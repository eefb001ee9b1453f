"""Pickles and arrays that somebody made to do harm: refused in one sentence, before any memory is taken for them."""

import io
import json
import os
import pickle
import struct
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import scipy.sparse as sp

from diffmm_dist.errors import UserError
from diffmm_dist.preparation.importers.arrays import open_rows
from diffmm_dist.preparation.importers.pickled import RefusedPickle, load
from diffmm_dist.preparation.importers.published import import_published
from diffmm_dist.preparation.importers.sparse_pickle import read_pattern, read_patterns
from tests.support.builders import ROOT, published_folder

INTS = np.array([0, 1, 2])


def coo(**attributes):
    matrix = sp.coo_matrix((np.ones(3), (INTS, INTS)), shape=(12, 9))
    matrix.__dict__.update(attributes)
    return matrix


def csr(kind=sp.csr_matrix, **attributes):
    matrix = kind(coo())
    matrix.__dict__.update(attributes)
    return matrix


def bsr(**attributes):
    return csr(sp.bsr_matrix, **attributes)


def dia(**attributes):
    return csr(sp.dia_matrix, **attributes)


BROKEN = {
    "coordinates of unequal length": coo(coords=(INTS, INTS[:2])),
    "values of unequal length": coo(data=np.ones(2)),
    "coordinates in two dimensions": coo(coords=(INTS[:, None], INTS[:, None])),
    "values in two dimensions": coo(data=np.ones((3, 3))),
    "one coordinate": coo(coords=(INTS,)),
    "three coordinates": coo(coords=(INTS, INTS, INTS)),
    "no coordinates": coo(coords=None),
    "fractional coordinates": coo(coords=(INTS * 1.5, INTS)),
    "coordinates beyond 63 bits": coo(coords=(np.array([0, 1, 2**64 - 1], np.uint64), INTS)),
    "negative coordinates": coo(coords=(-INTS, INTS)),
    "values that are no array": coo(data=[1, 2, 3]),
    "values that are NaN": coo(data=np.array([1, np.nan, 1])),
    "2^31 users": coo(_shape=(2**31, 9)),
    "2^31 - 1 users": coo(_shape=(2**31 - 1, 9)),
    "2^62 items": coo(_shape=(12, 2**62)),
    "many more items than interactions": coo(_shape=(12, 2_000_000)),
    "a negative shape": coo(_shape=(-12, 9)),
    "a shape of nothing": coo(_shape=(0, 0)),
    "a shape of negative nothing": coo(_shape=(0, -1)),
    "a shape of one side": coo(_shape=(12,)),
    "a shape of three sides": coo(_shape=(12, 9, 1)),
    "a fractional shape": coo(_shape=(12.0, 9)),
    "a shape of truth": coo(_shape=(True, 9)),
    "no shape": coo(_shape=None),
    "pointers that fall": csr(indptr=np.array([0, 3, 2, *[3] * 10])),
    "pointers that start late": csr(indptr=np.array([1, *[3] * 12])),
    "pointers beyond the values": csr(indptr=np.array([0, *[10**9] * 12])),
    "too few pointers": csr(indptr=np.array([0, 3])),
    "fractional pointers": csr(indptr=np.zeros(13)),
    "pointers in two dimensions": csr(indptr=np.zeros((13, 1), np.int64)),
    "inner numbers out of range": csr(indices=np.array([0, 1, 99])),
    "fewer inner numbers": csr(indices=np.array([0])),
    "rows of another shape": csr(_shape=(2**31 - 1, 9)),
    "columns of another shape": csr(sp.csc_matrix, _shape=(12, 2**31 - 1)),
    "columns out of range": csr(sp.csc_matrix, indices=np.array([0, 1, 99])),
    "blocks of nothing": bsr(data=np.ones((3, 0, 0))),
    "blocks that do not fit": bsr(data=np.ones((3, 5, 5))),
    "blocks in two dimensions": bsr(data=np.ones((3, 1))),
    "fewer blocks": bsr(data=np.ones((1, 1, 1))),
    "more diagonals": dia(offsets=np.array([0, 1])),
    "a diagonal twice": dia(data=np.ones((2, 9)), offsets=np.array([0, 0])),
    "diagonals in one dimension": dia(data=np.ones(9)),
    "a fractional diagonal": dia(offsets=np.array([0.5])),
}


@pytest.mark.parametrize("kind", BROKEN)
@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_a_broken_matrix_is_one_sentence(tmp_path, kind, protocol):
    path = tmp_path / "m.pkl"
    path.write_bytes(pickle.dumps(BROKEN[kind], protocol=protocol))
    with pytest.raises(UserError) as error:
        read_pattern(str(path), "m.pkl")
    assert str(error.value).startswith(("m.pkl ", "m.pkl: ", "refusing the pickle m.pkl: "))
    assert len(str(error.value)) < 300


def test_the_command_says_the_same_and_takes_no_memory(tmp_path, run_cli):
    folder = published_folder(tmp_path / "raw")
    for kind in ("2^31 users", "2^31 - 1 users", "coordinates of unequal length"):
        (folder / "trnMat.pkl").write_bytes(pickle.dumps(BROKEN[kind]))
        status, _, err = run_cli("prepare", "diffmm", folder, "--out", tmp_path / "out")
        assert status == 1
        assert len(err.splitlines()) == 1
        assert "trnMat.pkl" in err
    assert not (tmp_path / "out").exists()


def names(module, name):
    return b"c" + module.encode() + b"\n" + name.encode() + b"\n"


COO, STATE = names("scipy.sparse._coo", "coo_matrix"), b"}(X\x01\x00\x00\x00xI1\nu"
FORGED = {
    "attributes of a class": COO + STATE + b"b.",
    "attributes of a class, in slots": COO + b"N" + STATE + b"\x86b.",
    "attributes of a function": names("numpy._core.multiarray", "scalar") + STATE + b"b.",
    "attributes of a type": names("numpy", "dtype") + STATE + b"b.",
    "the class of an object": COO + b")\x81}(X\x09\x00\x00\x00__class__" + names("numpy", "ndarray") + b"ub.",
    "a dictionary of an object": COO + b")\x81}(X\x08\x00\x00\x00__dict__}ub.",
    "a state of an object": COO + b")\x81}(X\x0c\x00\x00\x00__setstate__" + names("_codecs", "encode") + b"ub.",
    "a class called": COO + b")R.",
    "a class called with arguments": COO + b"I5\n\x85\x81.",
    "an object of a function": names("_codecs", "encode") + b")\x81.",
    "a type by its name": names("numpy", "dtype") + b"X\x01\x00\x00\x00O\x85R.",
    "a type of texts": names("numpy", "dtype") + b"X\x04\x00\x00\x00U999\x85R.",
    "a type of fields": names("numpy", "dtype") + b"](X\x01\x00\x00\x00aX\x01\x00\x00\x00Oe\x85R.",
    "getattr": names("builtins", "getattr") + b".",
    "an attribute of a module": names("numpy", "core.multiarray.scalar") + b".",
    "a name with dots": b"\x80\x04\x8c\x05numpy\x8c\x0bdtype.mro.xb\x93.",
    "a persistent object": b"Pnope\n.",
    "an extension": b"\x82\x01.",
    "an instance": b"(inumpy\nndarray\n.",
    "bytes of a length": names("builtins", "bytes") + b"I1000000000000\n\x85R.",
    "a map in a map as its key": b"}}I1\ns.",
    "memory at a far place": b"I1\nr\xff\xff\xff\x7f0.",
    "bytes that are not there": b"\x80\x05\x8e" + struct.pack("<Q", 2**62) + b".",
    "a byte array that is not there": b"\x80\x05\x96" + struct.pack("<Q", 2**40) + b".",
    "a frame that is not there": b"\x80\x05\x95" + struct.pack("<Q", 2**62) + b".",
    "a number of many digits": b"I" + b"9" * 100_000 + b"\n.",
    "a number of many bytes": b"\x8b" + struct.pack("<i", 10_000) + b"\x7f" * 10_000 + b".",
    "a list that doubles": b"]" + b"q\x00h\x00h\x00\x86" * 100_000 + b".",
    "tuples nested deep": b")" + b"\x85" * 100_000 + b".",
    "nothing left": b"0.",
    "no mark": b"t.",
    "an end at once": b".",
    "no end": b"I1\n",
    "an unknown operation": b"\xff",
}


@pytest.mark.parametrize("kind", FORGED)
def test_a_forged_pickle_sets_and_calls_nothing(tmp_path, kind):
    path = tmp_path / "m.pkl"
    path.write_bytes(FORGED[kind])
    before = {name: dict(vars(kind)) for name, kind in vars(sp).items() if isinstance(kind, type)}
    with pytest.raises(UserError, match=r"m\.pkl"):
        read_pattern(str(path), "m.pkl")
    assert before == {name: dict(vars(kind)) for name, kind in vars(sp).items() if isinstance(kind, type)}


def test_only_the_known_attributes_of_a_matrix_are_used(tmp_path):
    matrix = coo(__class__="x", nnz=10**12, tocoo="y", dtype="O", __array__="z")
    (tmp_path / "m.pkl").write_bytes(pickle.dumps(matrix))
    assert read_pattern(str(tmp_path / "m.pkl"), "m.pkl").rows.tolist() == [0, 1, 2]


def test_bytes_that_old_pickles_lack_are_none():
    empty = sp.coo_matrix((12, 9))
    for protocol in range(6):
        assert load(pickle.dumps(empty, protocol=protocol)).attributes["data"].size == 0
    with pytest.raises(RefusedPickle, match="more than 5,000 operations"):
        load(b"I1\n" * 5_001 + b".")


def test_a_reader_that_needs_too_much_memory_or_dies_is_one_sentence(tmp_path, monkeypatch):
    path = tmp_path / "m.pkl"
    path.write_bytes(pickle.dumps(coo(coords=(np.zeros(10**6, np.int8),) * 2, data=np.ones(10**6, np.int8))))
    monkeypatch.setattr("diffmm_dist.preparation.importers.sparse_pickle._MEMORY", 40 << 20)
    monkeypatch.setattr("diffmm_dist.preparation.importers.sparse_pickle._MEMORY_PER_BYTE", 0)
    assert (
        "reading m.pkl failed, within 0.0 GiB of memory" in read_patterns({"m.pkl": str(path)}, str(tmp_path))["m.pkl"]
    )
    monkeypatch.setattr("diffmm_dist.preparation.importers.sparse_pickle._SECONDS", 0)
    assert "reading m.pkl takes longer" in read_patterns({"m.pkl": str(path)}, str(tmp_path))["m.pkl"]


@pytest.mark.parametrize("kind", ["pipe", "device", "folder"])
@pytest.mark.parametrize("name", ["trnMat.pkl", "image_feat.npy"])
def test_what_is_imported_is_a_regular_file(tmp_path, kind, name):
    path = published_folder(tmp_path / "raw") / name
    path.unlink()
    {"pipe": os.mkfifo, "device": lambda path: path.symlink_to("/dev/zero"), "folder": os.mkdir}[kind](path)
    with pytest.raises(UserError, match=name):
        import_published(str(tmp_path / "raw"), str(tmp_path / "out"))


def npy(header, data=b"", version=(1, 0)):
    text = (header if isinstance(header, bytes) else header.encode("latin1")) + b"\n"
    length = struct.pack("<H" if version == (1, 0) else "<I", len(text))
    return b"\x93NUMPY" + bytes(version) + length + text + data


def header(descr="'<f4'", fortran="False", shape="(9, 5)"):
    return f"{{'descr': {descr}, 'fortran_order': {fortran}, 'shape': {shape}, }}"


def zipped():
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a.npy", b"x")
    return file.getvalue()


ROWS = np.ones(45, np.float32).tobytes()
HOSTILE_ARRAYS = {
    "a zip archive": zipped(),
    "a pickle": pickle.dumps(np.ones((9, 5))),
    "nothing": b"",
    "the beginning of a header": b"\x93NUMPY",
    "the beginning of a length": b"\x93NUMPY\x01\x00\x76",
    "a header that is not there": b"\x93NUMPY\x02\x00\xff\xff\xff\xff",
    "an unknown version": npy(header(), ROWS, (9, 0)),
    "more rows than bytes": npy(header(shape="(9, 50)"), ROWS),
    "rows beyond counting": npy(header(shape=f"({2**62}, {2**62})"), ROWS),
    "2^40 rows": npy(header(shape=f"({2**40}, 5)"), ROWS),
    "negative rows": npy(header(shape="(-9, 5)"), ROWS),
    "both negative": npy(header(shape="(-9, -5)"), ROWS),
    "a shape of truth": npy(header(shape="(True, 5)"), ROWS),
    "a fractional shape": npy(header(shape="(9.0, 5)"), ROWS),
    "a shape of texts": npy(header(shape="('9', '5')"), ROWS),
    "no shape": npy(header(shape="None"), ROWS),
    "no width": npy(header(shape="(9, 0)")),
    "one side": npy(header(shape="(45,)"), ROWS),
    "many sides": npy(header(shape="(1,) * 60"), ROWS),
    "Python objects": npy(header("'|O'"), ROWS),
    "fields": npy(header("[('a', '<f4'), ('b', '|O')]"), ROWS),
    "inner arrays": npy(header("('<f4', (10**6,))"), ROWS),
    "inner arrays without end": npy(header("('<f4', (1000000000,))"), ROWS),
    "texts": npy(header("'<U99'"), ROWS),
    "times": npy(header("'<M8[ns]'"), ROWS),
    "complex numbers": npy(header("'<c8'", shape="(9, 2)"), ROWS),
    "an unknown type": npy(header("'nope'"), ROWS),
    "no header": npy("", ROWS),
    "code in the header": npy("__import__('os').system('true')", ROWS),
    "a header nested deep": npy("(" * 5000, ROWS),
    "a header of signs": npy("-" * 9000 + "1", ROWS),
    "a header of sums": npy("+".join(["1"] * 4000), ROWS),
    "a header of megabytes": npy(header() + " " * (8 << 20), ROWS, (3, 0)),
    "a header that claims gigabytes": b"\x93NUMPY\x03\x00" + struct.pack("<I", 2**31) + b"x" * 100,
    "a header of other characters": npy(b"\xff\xfe\x00" * 30, ROWS),
    "another key": npy("{'descr': '<f4', 'shape': (9, 5)}", ROWS),
}


@pytest.mark.parametrize("kind", HOSTILE_ARRAYS)
def test_a_hostile_array_is_one_sentence(tmp_path, kind, capfd):
    path = tmp_path / "a.npy"
    path.write_bytes(HOSTILE_ARRAYS[kind])
    with pytest.raises(UserError) as error:
        open_rows(str(path), kinds="f", needed="float rows")
    assert str(error.value).startswith(str(path))
    assert len(str(error.value)) < len(str(path)) + 300
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", ["<f4", ">f4", "<f2", "<f8"])
@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
def test_every_form_of_an_array_is_read_rightly(tmp_path, order, dtype, version):
    rows = np.asarray(np.arange(45).reshape(9, 5), dtype, order=order)
    with (tmp_path / "a.npy").open("wb") as file:
        np.lib.format.write_array(file, rows, version=version)
        file.write(b"more")
    assert open_rows(str(tmp_path / "a.npy"), kinds="f", needed="rows").tolist() == rows.tolist()


def test_the_whole_import_stays_within_memory(tmp_path):
    folder = published_folder(tmp_path / "raw")
    (folder / "trnMat.pkl").write_bytes(pickle.dumps(BROKEN["2^31 - 1 users"]))
    code = """
import json, resource, sys
from diffmm_dist.preparation.importers.published import import_published
try:
    import_published(sys.argv[1], sys.argv[2])
except ValueError as error:
    text = str(error)
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
own = int(status["VmHWM"].split()[0])  # ru_maxrss counts what this process was before it became Python
print(json.dumps([text, own, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss]))
"""
    command = [sys.executable, "-c", code, str(folder), str(tmp_path / "out")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, check=True)
    text, own, child = json.loads(done.stdout)
    assert "claims 2,147,483,647 users but holds 3 interactions" in text
    assert max(own, child) < 1 << 20, "KiB"
