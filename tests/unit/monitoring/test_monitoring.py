import json

from diffmm_dist.monitoring.jsonl import JsonlRecorder, read_jsonl
from diffmm_dist.monitoring.progress import ProgressBar
from diffmm_dist.monitoring.recorder import MultiRecorder
from diffmm_dist.monitoring.timing import Stopwatch, peak_rss_gib


def test_lines_after_the_resumed_epoch_are_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    recorder = JsonlRecorder(path)
    for epoch in range(4):
        recorder.scalars({"valid/recall@20": epoch / 10}, epoch=epoch)
    recorder.close()
    with path.open("a") as file:
        file.write('{"epoch": 4, "valid/rec')  # killed while writing
    recorder = JsonlRecorder(path, start_epoch=2)
    recorder.scalars({"valid/recall@20": 0.9}, epoch=2)
    recorder.close()
    assert [(record["epoch"], record["valid/recall@20"]) for record in read_jsonl(path)] == [(0, 0), (1, 0.1), (2, 0.9)]
    assert list(tmp_path.iterdir()) == [path]


def test_values_that_json_cannot_hold_become_null(tmp_path):
    recorder = JsonlRecorder(tmp_path / "m.jsonl")
    recorder.scalars({"a/b": float("nan"), "a/c": float("inf")}, epoch=0)
    recorder.close()
    assert json.loads((tmp_path / "m.jsonl").read_text()).items() >= {"epoch": 0, "a/b": None, "a/c": None}.items()


def test_no_file_has_no_lines(tmp_path):
    assert read_jsonl(tmp_path / "nothing") == []


def test_multi_recorder_passes_everything_on(tmp_path):
    recorders = [JsonlRecorder(tmp_path / name) for name in ("a", "b")]
    multi = MultiRecorder(recorders)
    multi.scalars({"x/y": 1.0}, epoch=3)
    multi.close()
    assert read_jsonl(tmp_path / "a") == read_jsonl(tmp_path / "b") == [{"epoch": 3, "x/y": 1.0}]


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


def test_progress_bar_counts_steps_from_where_the_phase_resumes():
    with ProgressBar(enabled=True) as progress:
        progress.begin("epoch 3 denoise", total=10, done=4)
        progress.advance()
        (task,) = progress._progress.tasks
        assert (task.description, task.completed, task.total) == ("epoch 3 denoise", 5, 10)
