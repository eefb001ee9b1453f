import json
import mmap
from pathlib import Path

import pytest

from diffmm_dist.errors import UserError
from diffmm_dist.monitoring.jsonl import JsonlRecorder, lost_epochs, read_jsonl
from diffmm_dist.monitoring.recorder import MultiRecorder
from diffmm_dist.monitoring.timing import PeakMemory, Stopwatch, peak_rss_gib
from diffmm_dist.records import sealed, unsealed
from tests.support.builders import RUN_ID


def test_lines_after_the_resumed_epoch_are_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    recorder = JsonlRecorder(path, run=RUN_ID)
    for epoch in range(4):
        recorder.scalars({"valid/recall@20": epoch / 10}, epoch=epoch)
    recorder.close()
    with path.open("a") as file:
        file.write('{"epoch": 4, "valid/rec')  # killed while writing
    recorder = JsonlRecorder(path, run=RUN_ID, start_epoch=2)
    recorder.scalars({"valid/recall@20": 0.9}, epoch=2)
    recorder.close()
    records = read_jsonl(path, run=RUN_ID)
    assert [(record["epoch"], record["valid/recall@20"]) for record in records] == [(0, 0), (1, 0.1), (2, 0.9)]
    assert list(tmp_path.iterdir()) == [path]


def test_values_that_json_cannot_hold_become_null(tmp_path):
    recorder = JsonlRecorder(tmp_path / "m.jsonl", run=RUN_ID)
    recorder.scalars({"a/b": float("nan"), "a/c": float("inf")}, epoch=0)
    recorder.close()
    assert json.loads((tmp_path / "m.jsonl").read_text()).items() >= {"epoch": 0, "a/b": None, "a/c": None}.items()


def test_no_file_has_no_lines(tmp_path):
    assert read_jsonl(tmp_path / "nothing", run=RUN_ID) == []


def test_multi_recorder_passes_everything_on(tmp_path):
    recorders = [JsonlRecorder(tmp_path / name, run=RUN_ID) for name in ("a", "b")]
    multi = MultiRecorder(recorders)
    multi.scalars({"x/y": 1.0}, epoch=3)
    multi.close()
    for name in ("a", "b"):
        assert read_jsonl(tmp_path / name, run=RUN_ID) == [{"epoch": 3, "writer": 0, "x/y": 1.0}]


def lines(path, epochs, *, run=RUN_ID):
    recorder = JsonlRecorder(path, run=run)
    for epoch in epochs:
        recorder.scalars({"x/y": epoch / 10}, epoch=epoch)
    recorder.close()
    return path.read_bytes().splitlines(keepends=True)


WRONG_LINES = {
    "twice": (lambda own, other: [*own[:2], *own[1:]], 3, "epoch 1 comes behind epoch 1", []),
    "in another's place": (lambda own, other: [own[0], own[2], own[1], own[3]], 3, "epoch 1 comes behind epoch 2", [1]),
    "of another run": (lambda own, other: [*own[:2], other[2], own[3]], 3, "it belongs to another run", [2]),
    "without its checksum": (lambda own, other: [_unsealed(own[0]), *own[1:]], 1, "it has no checksum", [0]),
    "of a word": (lambda own, other: [own[0], _changed(own[1], {"x/y": "a"}), *own[2:]], 2, "'x/y' is no number", [1]),
    "of no epoch": (lambda own, other: [*own[:3], _changed(own[3], {"epoch": -1})], 4, "it names none", [3]),
}  # fmt: skip


def _unsealed(line):
    return json.dumps(unsealed(json.loads(line))).encode() + b"\n"


def _changed(line, change):
    return json.dumps(sealed(unsealed(json.loads(line)) | change)).encode() + b"\n"


@pytest.mark.parametrize("kind", WRONG_LINES)
def test_a_line_that_is_not_the_runs_next_record_is_said_and_dropped(kind, tmp_path):
    change, number, reason, lost = WRONG_LINES[kind]
    path = tmp_path / "metrics.jsonl"
    own, other = lines(path, range(4)), lines(tmp_path / "other", range(4), run="f" * 32)
    path.write_bytes(b"".join(change(own, other)))
    with pytest.raises(UserError, match=rf"metrics.jsonl, line {number} is not .+ \({reason}\); remove that line"):
        read_jsonl(path, run=RUN_ID)
    assert lost_epochs(path, run=RUN_ID, before=4) == lost
    JsonlRecorder(path, run=RUN_ID, start_epoch=4).close()
    assert [record["epoch"] for record in read_jsonl(path, run=RUN_ID)] == [n for n in range(4) if n not in lost]


def test_a_link_in_its_way_is_not_written_through(tmp_path):
    (tmp_path / "victim").write_text("mine")
    (tmp_path / "metrics.jsonl.partial").symlink_to(tmp_path / "victim")
    lines(tmp_path / "metrics.jsonl", range(2))
    assert (tmp_path / "victim").read_text() == "mine"


def test_stopwatch_goes_on_from_saved_seconds():
    watch = Stopwatch({"denoise": 5.0})
    with watch.measure("denoise"):
        pass
    with watch.measure("rebuild"):
        pass
    assert watch.seconds["denoise"] >= 5
    assert set(watch.seconds) == {"denoise", "rebuild"}


def test_memory_is_measured():
    assert 0.01 < peak_rss_gib() < 100


def test_the_peak_of_a_part_is_its_own_and_the_largest_of_all_is_kept():
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("only Linux tells the peak of a part")
    memory = PeakMemory()
    with memory.measure("large"):
        with mmap.mmap(-1, 320 << 20) as pages:  # given back at once, whatever the allocator does
            for place in range(0, len(pages), mmap.PAGESIZE):
                pages[place] = 1
    with memory.measure("small"):
        pass
    assert memory.gib["large"] > memory.gib["small"] + 0.25
    assert peak_rss_gib() >= memory.gib["large"]
    with memory.measure("large"):
        pass
    assert memory.gib["large"] > memory.gib["small"] + 0.25
