"""Raw content to a table of features: scanned, encoded block by block, and put together when all blocks are there."""

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import torch

from diffmm_dist import storage
from diffmm_dist.cores import usable_cores
from diffmm_dist.errors import UserError
from diffmm_dist.monitoring.log import logger
from diffmm_dist.monitoring.progress import ProgressLine
from diffmm_dist.preparation.content import images, sounds
from diffmm_dist.preparation.content.encoder import Encoder, device_of
from diffmm_dist.preparation.content.files import FileSource
from diffmm_dist.preparation.content.items import Damage, Source, told
from diffmm_dist.preparation.content.model_folder import fingerprint_of, missing_extra, model_folder
from diffmm_dist.preparation.content.parts import Made, Parts
from diffmm_dist.preparation.content.request import ContentRequest
from diffmm_dist.preparation.content.texts import TextSource
from diffmm_dist.preparation.content.vectors import vectors_of
from diffmm_dist.preparation.importers.report import Mistakes

_MOST_THREADS = 16  # that read contents
_SAY_EVERY_S = 60.0
# What makes features of each kind, whose versions may change their last digits.
_PACKAGES = {
    "images": ("torch", "transformers", "pillow"),
    "texts": ("torch", "transformers", "sentence-transformers"),
    "audio": ("torch", "transformers", "soundfile", "scipy"),
}


@dataclass(frozen=True)
class FeatureReport:
    """What was made.

    Attributes:
        num_items: that have features.
        width: of these.
        device: where the model ran.
        notes: what was left out, and what might surprise.
    """

    num_items: int
    width: int
    device: str
    notes: tuple[str, ...]


def make_features(request: ContentRequest, out: str, *, force: bool = False) -> FeatureReport:
    """Write the features of items from their content, or go on where the same command has stopped.

    Args:
        request: what to make.
        out: the Parquet file to write.
        force: replace it if it is there, and what an earlier command has made of it with other settings.

    Raises:
        UserError: options contradict each other, something is missing, or contents are damaged.
    """
    source, folder, device, parts = _opened(request, out, force=force)
    source.scan()
    _check_damaged(source.damaged, request)  # now, not after an hour
    weights = fingerprint_of(folder)
    packages = {name: version(name) for name in _PACKAGES[request.kind]}
    made_with = {"model": weights[:16], **request.settings(), "device": device.type, **packages}
    with parts.opened(made_with):
        work = _Work(request, folder, device, parts)
        work.run(source)
        _check_damaged(work.damaged, request)
        if not work.num_items:
            raise UserError(f"{request.source}: no item has content that can be read: {told(work.damaged)}")
        made_of = {**made_with, "model": storage.name(request.model), "weights": weights}
        parts.write(id_column=request.id_column, id_type=source.id_type, width=work.width, made_of=made_of)
    notes = [*source.notes, *work.notes]
    if work.damaged:
        notes.append(f"left out as damaged, missing or empty: {told(work.damaged)}")
    return FeatureReport(work.num_items, work.width, device.type, tuple(notes))


def _opened(request: ContentRequest, out: str, *, force: bool) -> tuple[Source, str, torch.device, Parts]:
    """Open what is to be read, the model's folder too, and tell all mistakes together."""
    wrong = Mistakes(request.mistakes())
    if not out.lower().endswith(".parquet"):
        wrong.append(f"--out {out} must end in .parquet")
    with wrong.collected():
        storage.check_file(out, [request.source, *([request.ids] if request.ids else [])])
        parts = Parts(out, force=force)
    with wrong.collected():
        _check_packages(request)
    with wrong.collected():
        device = device_of(request.device)
    with wrong.collected():
        folder = model_folder(request.model)
    with wrong.collected():
        source = _source(request)
    wrong.check()
    return source, folder, device, parts


def _source(request: ContentRequest) -> Source:
    if request.kind == "texts":
        return TextSource(request)
    return FileSource(request, images.ENDINGS if request.kind == "images" else sounds.ENDINGS)


def _check_packages(request: ContentRequest) -> None:
    for name in _PACKAGES[request.kind]:
        try:
            version(name)
        except ImportError as error:
            raise missing_extra(f"--{request.kind}", name) from error


def _check_damaged(damaged: Sequence[Damage], request: ContentRequest) -> None:
    """Refuse damaged contents unless they may be left out; what has been made of others stays for the next command."""
    if damaged and not request.skip_damaged:
        what = {"texts": "items without text", "images": "damaged images", "audio": "damaged sounds"}[request.kind]
        raise UserError(
            f"{request.source}: {what}: {told(damaged)}; mend them and run the same command again, which goes on with "
            "what it has, or pass --skip-damaged to leave them out"
        )


class _Work:
    """One pass over the blocks of a source.

    Args:
        request: what to make.
        folder: of the model.
        device: where it runs.
        parts: blocks that are there, and those that are made.

    Attributes:
        damaged: contents that count for nothing.
        notes: what might surprise.
        num_items: that have features.
        width: of these.
    """

    def __init__(self, request: ContentRequest, folder: str, device: torch.device, parts: Parts) -> None:
        self._request, self._folder, self._device, self._parts = request, folder, device, parts
        self._encoder: Encoder | None = None
        self.damaged: list[Damage] = []
        self.notes: list[str] = []
        self.num_items = self.width = 0

    def run(self, source: Source) -> None:
        """Make the blocks that are not there yet."""
        self.damaged += source.damaged
        cores, _ = usable_cores().share()
        torch.set_num_threads(cores)
        num_threads = min(cores, _MOST_THREADS)
        with ProgressLine() as line, ThreadPoolExecutor(num_threads, thread_name_prefix="content") as threads:
            line.begin("features of", self._request.kind, total=source.num_items, unit="items")
            said, seen = time.monotonic(), 0
            for block in source.blocks():
                made = self._parts.find(block)
                if made is None:
                    made = vectors_of(block, self._loaded(), threads, ahead=2 * num_threads, done=line.advance)
                    self._refuse_nothing(made)
                    self._parts.keep(block, made)
                else:
                    line.advance(len(block.ids))
                self._count(made)
                seen += len(block.ids)
                if time.monotonic() - said > _SAY_EVERY_S:
                    said = time.monotonic()
                    logger.info("features of %d of %d items", seen, source.num_items)
        if self._parts.num_changed:
            self.notes.append(f"{self._parts.num_changed:,} blocks were made again, since their contents have changed")

    def _loaded(self) -> Encoder:
        """Return the model, which is loaded when it is first needed: what is left may be to write the file."""
        if self._encoder is None:
            self._encoder = _encoder_of(self._request, self._folder, self._device)
            self.notes += self._encoder.notes
        return self._encoder

    def _refuse_nothing(self, made: Made) -> None:
        """Refuse at once where nothing can be read, instead of going through the rest."""
        if not len(made.ids) and not self.num_items:
            _check_damaged([*self.damaged, *made.damaged], self._request)

    def _count(self, made: Made) -> None:
        self.damaged += made.damaged
        self.num_items += len(made.ids)
        self.width = self.width or made.vectors.shape[1]


def _encoder_of(request: ContentRequest, folder: str, device: torch.device) -> Encoder:
    arguments: Any = (folder, request.model, device, request.batch_size)
    if request.kind == "texts":
        from diffmm_dist.preparation.content.sentences import TextEncoder

        return TextEncoder(*arguments, prompt=request.prompt)
    from diffmm_dist.preparation.content.pretrained import ImageEncoder, SoundEncoder

    if request.kind == "images":
        return ImageEncoder(*arguments)
    return SoundEncoder(*arguments, max_seconds=request.max_seconds)
