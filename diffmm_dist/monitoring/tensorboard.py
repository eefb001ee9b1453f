"""TensorBoard's files; the only place that imports tensorboard."""

import json
import os
import re
import socket
import struct
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from diffmm_dist.monitoring.projector import write_projector, write_whole
from diffmm_dist.monitoring.recorder import Recorder

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

_STAMP = re.compile(r"events\.out\.tfevents\.(\d{10})\.")
_PNG = b"\x89PNG\r\n\x1a\n"
_FINAL = "final"
# Of these a chart shows all values, and none is open at first; of others it shows one, at all its cut-offs.
_COSTS = ("time", "mem", "comm", "storage")


class TensorBoardRecorder(Recorder):
    """Writes scalars and figures as TensorBoard events, one step per epoch, and what its other pages show.

    The settings are a text, written by the first process of a run. A layout groups the scalars: whenever there are new
    ones it is written anew, and TensorBoard shows the last. The final figures stand beside the settings in a run of
    their own, ``final``, so that they alone are columns of its table of runs.

    Args:
        folder: where the event files go.
        start_epoch: first epoch that this process will record; TensorBoard drops what an earlier, killed process
            recorded from that epoch on.
        earlier: names of the run's event files that are not in the folder, such as those on S3.
        tags: of the scalars that earlier processes have recorded.
        unlisted: sections of settings that are left out of the table of runs, as they make no other run.
    """

    def __init__(
        self,
        folder: Path,
        *,
        start_epoch: int = 0,
        earlier: Iterable[str] = (),
        tags: Iterable[str] = (),
        unlisted: Collection[str] = (),
    ) -> None:
        from tensorboard.compat.proto.event_pb2 import SessionLog

        folder.mkdir(parents=True, exist_ok=True)
        names = [name for name in [*earlier, *os.listdir(folder)] if _STAMP.match(name)]
        self._folder = folder
        self._unlisted = unlisted
        self._listed: Mapping[str, Any] = {}
        self._goes_on = bool(names) and start_epoch > 0
        self._tags = dict.fromkeys(tags)
        self._laid_out = set(self._tags) if self._goes_on else set()
        self._events = _Events((folder / _name_after(names)).open("xb"))
        # The first start of a run is never taken for another one, so every process must write one.
        self._events.write(step=start_epoch, session_log=SessionLog(status=SessionLog.START))
        self._events.flush()

    def begin(self, settings: Mapping[str, Any]) -> None:
        """Write the settings as a table, unless an earlier process has."""
        self._listed = {key: value for key, value in settings.items() if key.split(".")[0] not in self._unlisted}
        if not self._goes_on:
            rows = [f"| {key} | `{_cell(value)}` |" for key, value in settings.items()]
            self._events.tensor("config", "\n".join(["| setting | value |", "| --- | --- |", *rows]), plugin="text")

    def scalars(self, values: Mapping[str, float], *, epoch: int) -> None:
        """Write one event per tag and flush, so that a running job can be watched."""
        for tag, value in values.items():
            self._events.value(step=epoch, tag=tag, simple_value=value)
        self._tags |= dict.fromkeys(values)
        if not self._laid_out >= self._tags.keys():
            self._laid_out |= self._tags.keys()
            self._events.tensor("custom_scalars__config__", _layout(self._tags), plugin="custom_scalars", step=epoch)
        self._events.flush()

    def figure(self, tag: str, png: bytes, *, epoch: int) -> None:
        """Write a picture.

        Raises:
            ValueError: it is no PNG file.
        """
        from tensorboard.compat.proto.summary_pb2 import Summary

        if not png.startswith(_PNG) or len(png) < 24:
            raise ValueError(f"the figure {tag} is no PNG file")
        width, height = struct.unpack(">II", png[16:24])
        image = Summary.Image(width=width, height=height, colorspace=4, encoded_image_string=png)
        self._events.value(step=epoch, tag=tag, image=image)
        self._events.flush()

    def embeddings(self, name: str, vectors: "npt.NDArray[np.float32]", labels: Mapping[str, Sequence[str]]) -> None:
        """Write what the projector reads."""
        write_projector(self._folder, name, vectors, labels)

    def end(self, metrics: Mapping[str, float], *, epoch: int) -> None:
        """Write the settings and final figures for the table of runs, in place of those that are there."""

        def write(file: IO[bytes]) -> None:
            events = _Events(file)
            _write_session(events, self._listed, metrics, epoch)
            events.flush()

        (self._folder / _FINAL).mkdir(exist_ok=True)
        write_whole(self._folder / _FINAL / "events.out.tfevents.final", write)

    def close(self) -> None:
        """Close the event file."""
        self._events.close()


class _Events:
    """An event file being written; it closes the stream."""

    def __init__(self, stream: IO[bytes]) -> None:
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._writer = RecordWriter(stream)
        self.flush, self.close = self._writer.flush, self._writer.close
        self.write(file_version="brain.Event:2")

    def write(self, **content: Any) -> None:
        from tensorboard.compat.proto.event_pb2 import Event

        self._writer.write(Event(wall_time=time.time(), **content).SerializeToString())

    def value(self, *, step: int = 0, **content: Any) -> None:
        """Write a value of a summary."""
        from tensorboard.compat.proto.summary_pb2 import Summary

        self.write(step=step, summary=Summary(value=[Summary.Value(**content)]))

    def tensor(
        self, tag: str, content: str | bytes | None, *, plugin: str, of_plugin: bytes = b"", step: int = 0
    ) -> None:
        """Write a text, or what a plugin reads of a tag beside it."""
        from tensorboard.compat.proto import summary_pb2, tensor_pb2, types_pb2

        tensor = tensor_pb2.TensorProto(dtype=types_pb2.DT_STRING)
        tensor.tensor_shape.SetInParent()  # no dimensions: one text
        tensor.string_val.append(content.encode() if isinstance(content, str) else content or b"")
        metadata = summary_pb2.SummaryMetadata(data_class=summary_pb2.DATA_CLASS_TENSOR)
        metadata.plugin_data.plugin_name = plugin
        metadata.plugin_data.content = of_plugin
        self.value(step=step, tag=tag, tensor=tensor, metadata=metadata)


def _cell(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text.replace("`", "'").replace("|", "\\|").replace("\n", " ")


def _write_session(events: _Events, settings: Mapping[str, Any], metrics: Mapping[str, float], epoch: int) -> None:
    from tensorboard.plugins.hparams import api_pb2
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    begun, ended = HParamsPluginData(), HParamsPluginData()
    begun.session_start_info.start_time_secs = ended.session_end_info.end_time_secs = time.time()
    ended.session_end_info.status = api_pb2.STATUS_SUCCESS
    for key, value in settings.items():
        of_key = begun.session_start_info.hparams[key]
        if isinstance(value, bool):
            of_key.bool_value = value
        elif isinstance(value, int | float):
            of_key.number_value = value
        else:
            of_key.string_value = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    for name, info in (("start", begun), ("end", ended)):
        content = info.SerializeToString()
        events.tensor(f"_hparams_/session_{name}_info", None, plugin="hparams", of_plugin=content)
    for tag, number in metrics.items():
        events.value(step=epoch, tag=tag, simple_value=number)


def _layout(tags: Iterable[str]) -> bytes:
    """Return a layout of scalars: the metrics first, then the phases, with a chart of each value, then costs."""
    from tensorboard.plugins.custom_scalar.layout_pb2 import Category, Chart, Layout, MultilineChartContent

    charts: dict[str, dict[str, str]] = {}
    for tag in tags:
        group, _, name = tag.rpartition("/")
        group, title, rest = (group, group, "/.*") if group in _COSTS else (group, name.partition("@")[0], "")
        pattern = rest or f"/{re.escape(title)}(@[0-9]+)?"
        charts.setdefault(group or "run", {})[title] = f"^{re.escape(group)}{pattern}$" if group else f"^{tag}$"
    categories = [
        Category(
            title=group,
            closed=_order(group) == 2,
            chart=[
                Chart(title=title, multiline=MultilineChartContent(tag=[pattern])) for title, pattern in named.items()
            ],
        )
        for group, named in sorted(charts.items(), key=lambda item: _order(item[0]))
    ]
    return bytes(Layout(category=categories).SerializeToString())


def _order(group: str) -> int:
    if group.rpartition("/")[2] in ("valid", "test"):
        return 0
    return 2 if group in (*_COSTS, "throughput", "run") else 1


def _name_after(names: Iterable[str]) -> str:
    """Return a name for an event file that sorts after the others, which is the order that TensorBoard reads them in.

    Names begin with the second of their making. Where there is one of this second, or a later one by the clock of
    another host, the second after that is written.
    """
    stamps = [int(match[1]) for match in map(_STAMP.match, names) if match is not None]
    stamp = max(int(time.time()), max(stamps, default=0) + 1)
    return f"events.out.tfevents.{stamp:010d}.{socket.gethostname()}.{os.getpid()}"
