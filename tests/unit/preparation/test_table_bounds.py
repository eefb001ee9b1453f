"""Tables that somebody made to take memory or time without bound: refused in one sentence, before they can."""

import gzip
import io
import random
import threading

import pyarrow as pa
import pytest

from diffmm_dist.errors import UserError
from diffmm_dist.preparation.importers import json_lines, table_formats, text_source
from diffmm_dist.preparation.importers.arrow_tables import Table
from diffmm_dist.preparation.importers.json_lines import Lines
from diffmm_dist.preparation.importers.text_source import TextSource


def nested(opening, closing, depth, between=""):
    return '{"u": 1, "i": ' + (opening + between) * depth + "1" + closing * depth + "}\n"


HOSTILE = {
    "lists in lists": ("jsonl", nested("[", "]", 100_000), "line 1 is nested deeper than 64 levels"),
    "objects in objects": ("jsonl", nested('{"a":', "}", 100_000), "line 1 is nested deeper than 64 levels"),
    "objects in objects over many lines": ("jsonl", nested('{"a":', "}", 100_000, "\n"), "line 1 is no JSON object"),
    "brackets hidden in texts": (
        "jsonl", '{"u": 1}\n{"i": ' + '{"]}\\\\\\"]":[' * 40_000 + "\n}\n", "line 2 is nested deeper|line 2 is no JSON",
    ),
    "a value alone": ("jsonl", 'null\n{"u": 1}\n', "line 1 is no JSON object"),
    "half a line": ("jsonl", '{"u": 1}\n\n{"u": ', "line 3 is no JSON object"),
    "keys of one line": ("jsonl", "{" + ",".join(f'"k{n}":1' for n in range(70_000)) + "}\n", "more than 65,536 keys"),
    "a wide header": ("csv", ",".join(map(str, range(20_000))) + "\n", "more than 16,384 columns"),
    "a wide header behind a quoted line break": ("csv", '"a\nb",' + "," * 20_000 + "\n", "more than 16,384 columns"),
    "a long header": ("csv", "," * (2 << 20) + "\n", "its header is longer than 1 MiB"),
    "a long name": ("csv", "a" * (2 << 20) + "\n", "its header holds a name that is too long"),
}  # fmt: skip


@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_text_is_one_sentence(tmp_path, what):
    ending, text, sentence = HOSTILE[what]
    path = tmp_path / f"in.{ending}"
    path.write_text(text)
    with pytest.raises(UserError, match=sentence) as error:
        Table(str(path))
    assert "in." + ending in str(error.value)


@pytest.mark.parametrize("inner", ['{"k%d": 1}\n', '{"u": 1, "i": {"k%d": 1}}\n'])
def test_a_new_key_in_every_line(tmp_path, monkeypatch, inner):
    monkeypatch.setattr("diffmm_dist.preparation.importers.table_schemas.MOST_COLUMNS", 3000)
    (tmp_path / "in.jsonl").write_text("".join(inner % number for number in range(30_000)))
    with pytest.raises(UserError, match=r"in\.jsonl has more than 3,000 columns"):
        Table(str(tmp_path / "in.jsonl"))


@pytest.mark.parametrize("ending", ["jsonl.gz", "csv.gz"])
@pytest.mark.parametrize("quote", ['"', ""])
def test_a_line_without_end(tmp_path, monkeypatch, ending, quote):
    monkeypatch.setattr(table_formats, "_BLOCK_BYTES", 1 << 16)
    monkeypatch.setattr(json_lines, "LONGEST_LINE", 1 << 18)
    start = '{"u": "' if ending == "jsonl.gz" else f"u,i\n{quote}"
    (tmp_path / f"in.{ending}").write_bytes(gzip.compress(start.encode() + b"a" * (16 << 20), 1))
    before = pa.total_allocated_bytes()
    with pytest.raises(UserError, match=r"is longer than (256|64) KiB"):
        Table(str(tmp_path / f"in.{ending}"))
    assert pa.total_allocated_bytes() - before < 8 << 20


def test_other_formats_have_no_more_columns_either(tmp_path):
    schema = pa.schema([pa.field("x", pa.struct([pa.field(str(n), pa.int8()) for n in range(20_000)]))])
    with pa.OSFile(str(tmp_path / "in.arrow"), "wb") as sink, pa.ipc.new_file(sink, schema):
        pass
    with pytest.raises(UserError, match=r"in\.arrow has more than 16,384 columns"):
        Table(str(tmp_path / "in.arrow"))


class TestSource:
    def test_what_is_left_or_stopped_ends(self):
        stop = threading.Event()
        first, second = (TextSource(io.BytesIO(b"abcdef"), stop) for _ in range(2))
        assert first.peek(2) == b"ab"
        assert [first.read(1), first.read(9), first.read(2)] == [b"a", b"b", b"cd"]
        first.leave()
        assert first.read(1) == b""
        assert second.read(1) == b"a"
        stop.set()
        assert second.read(1) == b""

    def test_an_interrupted_look_at_the_files_stops_the_threads(self, tmp_path, monkeypatch):
        """One file cannot be read, which ends the others, as a signal to the main thread does."""
        (tmp_path / "1.jsonl").write_text("x\n")
        (tmp_path / "2.jsonl").write_text('{"u": 1}\n' * 200_000)
        monkeypatch.setattr(table_formats, "_BLOCK_BYTES", 64)
        reads = []
        read = text_source.TextSource.read
        monkeypatch.setattr(text_source.TextSource, "read", lambda self, size: reads.append(1) or read(self, size))
        with pytest.raises(UserError, match="line 1 is no JSON object"):
            Table(str(tmp_path))
        assert len(reads) < 20_000


@pytest.mark.parametrize("seed", range(20))
def test_the_schema_of_pieces_is_that_of_the_whole(monkeypatch, seed):
    monkeypatch.setattr(json_lines, "_FIRST_BYTES", 64)
    draw = random.Random(seed)
    values = {"a": ["1", "2.5", "null"], "b": ['"x"', '"2024-01-01 00:00:00"', "null"], "c": ["[]", "[1]", "[0.5]"],
              "d": ['{"e": 1}', '{"f": "}{\\"[["}', "{}", "null"]}  # fmt: skip
    lines = []
    for _ in range(200):
        names = draw.sample(sorted(values), draw.randrange(len(values) + 1))
        lines.append("{" + ", ".join(f'"{name}": {draw.choice(values[name])}' for name in names) + "}")
        lines += [""] * draw.randrange(2)
    whole = Lines("in", "\n".join(lines).encode(), 1)
    whole.check()
    schema = json_lines.schema_of("in", [whole])
    assert {field.name: field.type for field in schema} == {
        field.name: field.type for field in json_lines._without_times(json_lines.parse(whole).schema)
    }
    monkeypatch.setattr(json_lines, "_MOST_CELLS", 40)
    parts = [json_lines.parse(part, schema, others="ignore") for part in whole.pieces(len(schema))]
    assert len(parts) > 1
    assert pa.concat_tables(parts).to_pylist() == json_lines.parse(whole, schema).to_pylist()
