"""Files that are damaged or hostile are refused, whatever was done to them, and never before their data were used."""

import hashlib
import json
import shutil

import numpy as np
import pyarrow as pa
import pytest

from diffmm_dist.checksums import HashedReader
from diffmm_dist.data import schema
from diffmm_dist.data.dataset import Cursor, Dataset
from diffmm_dist.data.stream import Reading
from diffmm_dist.data.writer import dataset_writer
from diffmm_dist.errors import UserError
from diffmm_dist.preparation.partitioning import partition_dataset
from diffmm_dist.records import sealed, unsealed
from tests.support import damage
from tests.support.builders import synthetic_dataset


@pytest.fixture(scope="module")
def intact(tmp_path_factory):
    """A partitioned dataset: every kind of file, of several record batches each."""
    folder = tmp_path_factory.mktemp("intact")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(schema, "ROWS_PER_BATCH", 50)
        whole = synthetic_dataset(folder / "whole", users=120, items=60, interactions=1500)
        partition_dataset(whole, str(folder / "parts"), num_parts=2, method="random", seed=0)
    return folder / "parts"


@pytest.fixture
def path(intact, tmp_path):
    return shutil.copytree(intact, tmp_path / "data")


def files_of(folder):
    return sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())


def read_everything(path, reading=None):
    """All that a command may read of a dataset, as plain values."""
    dataset = Dataset.open(str(path), reading)
    values = [dataset.interactions(split).keys.tolist() for split in schema.SPLITS]
    values += [dataset.features(name).tolist() for name in dataset.manifest.modalities]
    values += [dataset.original_ids(kind).to_pylist() for kind in ("users", "items")]
    return [*values, *(dataset.source_rows(kind).tolist() for kind in ("users", "items")), dataset.manifest.fingerprint]


def refused_naming(path, file):
    with pytest.raises(UserError) as error:
        read_everything(path)
    assert str(file) in str(error.value)
    assert "\n" not in str(error.value)


def test_any_flipped_bit_is_refused_or_changes_nothing(path, intact):
    """Every file of a dataset, its manifest included, at places spread over headers, data, padding and footers."""
    before = read_everything(intact)
    random = np.random.default_rng(0)
    unseen = []
    for name in files_of(intact):
        size = (intact / name).stat().st_size
        places = {0, 3, 9, 20, size - 1, size - 5, size - 11, *random.integers(size, size=6).tolist()}
        for place in places:
            damage.flip(path / name, place, int(random.integers(8)))
            sentence = damage.refusal(lambda: read_everything(path), before)
            if sentence is None:
                unseen.append(str(name))
            else:
                assert str(name) in sentence or "manifest.json" in sentence
            shutil.copy(intact / name, path / name)
    # White space, and the name of the key under which the manifest's own checksum stands.
    assert set(unseen) <= {"manifest.json"}


KINDS = {
    "interactions": "interactions/split=train/part-00001.arrow", "features": "items/modality=visual/part-00000.arrow",
    "ids": "ids/users-00001.arrow", "order": "order/items-00000.arrow",
}  # fmt: skip


@pytest.mark.parametrize("change", damage.WHOLE)
@pytest.mark.parametrize("kind", KINDS)
def test_a_file_that_was_damaged_as_a_whole(path, kind, change):
    damage.WHOLE[change](path / KINDS[kind])
    refused_naming(path, KINDS[kind])


@pytest.mark.parametrize("kind", KINDS)
def test_other_rows_in_an_intact_file(path, kind):
    damage.rotate_rows(path / KINDS[kind])
    refused_naming(path, KINDS[kind])


def test_files_that_were_swapped(path):
    damage.swap(path / "items/modality=visual/part-00000.arrow", path / "items/modality=visual/part-00001.arrow")
    refused_naming(path, "items/modality=visual/part-0000")


def test_who_does_not_want_checksums_gets_the_data_as_they_are(path, intact):
    damage.rotate_rows(path / KINDS["features"])
    after = read_everything(path, Reading(verify=False))
    assert after != read_everything(intact)


def test_the_last_record_batch_of_a_file_waits_for_the_checksum(path):
    entry = Dataset.open(str(path)).manifest.interactions["train"][0]
    manifest = json.loads((path / schema.MANIFEST).read_text().replace(entry.sha256, "0" * 64))
    (path / schema.MANIFEST).write_text(json.dumps(sealed(unsealed(manifest))))
    dataset = Dataset.open(str(path))
    got = 0
    with pytest.raises(UserError, match="its checksum"):
        for users, _ in dataset.stream("train"):
            got += len(users)
    assert got == dataset.manifest.interactions["train"][0].rows // 50 * 50 > 0


def test_an_epoch_that_goes_on_inside_a_file_checks_the_part_before_it_too(path):
    dataset = Dataset.open(str(path))
    *_, cursor = next(dataset.stream_epoch("train", Cursor(), seed=3))
    assert cursor == Cursor(0, 0, 1)
    for entry in dataset.manifest.interactions["train"]:
        damage.flip(path / entry.path, 300)  # inside the first record batch
    with pytest.raises(UserError, match=r"split=train/part-0000\d\.arrow is damaged: its checksum"):
        list(dataset.stream_epoch("train", cursor, seed=3))


class TestForged:
    """The checksums agree, as those of a hostile dataset do: what lies in the file must still be sound."""

    @staticmethod
    def refused(path, name, pattern):
        damage.forge(path, schema.MANIFEST)
        with pytest.raises(UserError, match=pattern) as error:
            read_everything(path)
        assert str(name) in str(error.value)

    @staticmethod
    def write_batch(path, arrays, file_schema):
        batch = pa.RecordBatch.from_arrays(arrays, schema=file_schema)
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, file_schema) as writer:
            writer.write_batch(batch)

    @pytest.mark.parametrize("offsets", ["far", "falling", "negative"])
    def test_strings_whose_offsets_lead_elsewhere(self, tmp_path, offsets):
        path = tmp_path / "strings"
        ids = [f"user {number}" for number in range(8)]
        write_dataset(path, ids)
        buffer = np.arange(9, dtype=np.int32) * 6
        buffer[5] = {"far": 2**30, "falling": 1, "negative": -8}[offsets]
        array = pa.StringArray.from_buffers(
            8, pa.py_buffer(buffer.tobytes()), pa.py_buffer(b"".join(map(str.encode, ids)))
        )
        self.write_batch(path / "ids/users-00000.arrow", [array], schema.id_schema(pa.string()))
        self.refused(path, "ids/users-00000.arrow", "truncated or not an Arrow file")

    def test_strings_that_are_no_text(self, tmp_path):
        path = tmp_path / "strings"
        write_dataset(path, ["a"] * 8)
        array = pa.StringArray.from_buffers(
            8, pa.py_buffer(np.arange(9, dtype=np.int32).tobytes()), pa.py_buffer(b"\xff" * 8)
        )
        self.write_batch(path / "ids/users-00000.arrow", [array], schema.id_schema(pa.string()))
        self.refused(path, "ids/users-00000.arrow", "truncated or not an Arrow file.*UTF8")

    @pytest.mark.parametrize("name", ["interactions/split=train/part-00000.arrow", "ids/items-00000.arrow"])
    def test_more_rows_than_the_buffers_hold(self, path, name):
        """The record batch's header is rewritten: its length, and that of its columns, is a number in the file."""
        data = bytearray((path / name).read_bytes())
        rows = damage.read_table(path / name).to_batches()[0].num_rows
        old, new = rows.to_bytes(8, "little"), (rows + (1 << 20)).to_bytes(8, "little")
        assert data.count(old) >= 2
        (path / name).write_bytes(data.replace(old, new))
        self.refused(path, name, "truncated or not an Arrow file|rows but manifest")

    @pytest.mark.parametrize("kind", KINDS)
    def test_nulls_where_none_may_be(self, path, kind):
        place = path / KINDS[kind]
        table = damage.read_table(place)
        column = table.column(0).combine_chunks()
        if pa.types.is_fixed_size_list(column.type):
            values = column.flatten()
            values = pa.concat_arrays([values.slice(0, len(values) - 1), pa.nulls(1, values.type)])
            column = pa.FixedSizeListArray.from_arrays(values, type=column.type)
        else:
            column = pa.concat_arrays([column.slice(1), pa.nulls(1, column.type)])
        others = [table.column(index).combine_chunks() for index in range(1, table.num_columns)]
        self.write_batch(place, [column, *others], table.schema)
        self.refused(path, KINDS[kind], "nulls|null")

    @pytest.mark.parametrize("kind", KINDS)
    def test_another_type_or_width(self, path, kind):
        place = path / KINDS[kind]
        rows = damage.read_table(place).num_rows
        values = pa.array([[1.0, 2.0]] * rows, pa.list_(pa.float32(), 2))
        damage.write_table(place, pa.table({"features": values}))
        self.refused(path, KINDS[kind], "has columns .* are expected")

    @pytest.mark.parametrize("times", [0, 2, 40])
    def test_another_number_of_rows(self, path, times):
        place = path / KINDS["interactions"]
        table = damage.read_table(place)
        damage.write_table(place, pa.concat_tables([table.slice(0, 0), *[table] * times]))
        self.refused(path, KINDS["interactions"], r"holds \d+ rows but manifest.json says")


def write_dataset(path, user_ids):
    with dataset_writer(str(path), num_users=len(user_ids), num_items=1) as writer:
        writer.add_interactions("train", np.array([0]), np.array([0]))
        writer.add_ids("users", pa.array(user_ids))
        writer.add_ids("items", pa.array([7]))


class TestManifest:
    @pytest.mark.parametrize(
        ("old", "new"),
        [('"num_users": 120', '"num_users": 124'), ("split=test", "split=tesu"), ('"float32"', '"float16"'),
         ('"user_stop"', '"user_rtop"'), ('"made_by"', '"made_cy"')],
    )  # fmt: skip
    def test_text_that_was_changed(self, path, old, new):
        place = path / schema.MANIFEST
        text = place.read_text()
        assert old in text
        place.write_text(text.replace(old, new, 1))
        with pytest.raises(UserError, match=r"manifest\.json is damaged"):
            Dataset.open(str(path))

    @pytest.mark.parametrize("change", damage.WHOLE)
    def test_one_that_was_damaged_as_a_whole(self, path, change):
        damage.WHOLE[change](path / schema.MANIFEST)
        with pytest.raises(UserError, match=r"manifest\.json"):
            Dataset.open(str(path))

    def test_one_without_a_checksum_of_its_own_is_read(self, path, intact):
        """As datasets have it that were prepared before manifests had one."""
        place = path / schema.MANIFEST
        record = json.loads(place.read_text())
        del record["sha256"]
        place.write_text(json.dumps(record))
        assert read_everything(path) == read_everything(intact)

    def test_the_fingerprint_is_of_all_that_reaches_a_result(self, path):
        """Even of a manifest that was forged around intact files."""
        before = Dataset.open(str(path)).manifest
        bounds = before.partition.user_bounds
        other = before.model_copy(
            update={"partition": before.partition.model_copy(update={"user_bounds": (*bounds, 7)})}
        )
        assert other.fingerprint != before.fingerprint
        (path / schema.MANIFEST).write_text(
            json.dumps(sealed({**before.model_dump(mode="json"), "made_by": {"importer": "somebody else"}}))
        )
        assert Dataset.open(str(path)).manifest.fingerprint == before.fingerprint


@pytest.mark.parametrize("seed", range(4))
def test_a_hashed_reader_hashes_every_byte_once_whatever_is_read(tmp_path, seed):
    random = np.random.default_rng(seed)
    data = random.bytes(5000)
    (tmp_path / "x").write_bytes(data)
    with open(tmp_path / "x", "rb") as source:
        reader = HashedReader(source)
        reader.seek(-100, 2)
        assert reader.read() == data[-100:]
        for _ in range(20):
            place, size = int(random.integers(5000)), int(random.integers(400))
            reader.seek(place)
            assert reader.read(size) == data[place : place + size]
            assert reader.tell() == min(place + size, 5000)
        assert reader.hexdigest() == hashlib.sha256(data).hexdigest()
