"""Models of images and sounds as transformers loads them. The home of transformers.

A piece goes through the processor by itself, and pieces of one shape through the model together, so that none is
padded and no vector depends on its neighbours but for rounding.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterable
from typing import Any, NoReturn

import numpy as np
import torch

from diffmm_dist.errors import UserError, lacks_memory, one_line
from diffmm_dist.preparation.content.encoder import Vectors
from diffmm_dist.preparation.content.images import read_image
from diffmm_dist.preparation.content.model_folder import missing_extra
from diffmm_dist.preparation.content.sounds import WINDOW_S, read_windows
from diffmm_dist.words import LONGEST

Piece = dict[str, torch.Tensor]
# Weights that training alone needs. A pooler that a model lacks is not used.
_HARMLESS = re.compile(r"mask_token|masked_spec_embed|position_ids|pooler")
_SAFE = {"use_safetensors": True, "trust_remote_code": False, "local_files_only": True}


def _transformers() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise missing_extra("a model", "transformers") from error
    transformers.utils.logging.set_verbosity_error()  # what is missing is told by ``load_model``
    transformers.utils.logging.disable_progress_bar()
    return transformers


def load_model(folder: str, name: str) -> tuple[Any, bool]:
    """Load a model whose weights are all there, in float32.

    Args:
        folder: where it is.
        name: for errors.

    Returns:
        The model, and whether it has a pooler with weights of its own training.

    Raises:
        UserError: it is of no known kind, or weights are missing, for which random ones would stand.
    """
    transformers = _transformers()
    try:
        model, found = transformers.AutoModel.from_pretrained(
            folder, dtype=torch.float32, output_loading_info=True, **_SAFE
        )
    except Exception as error:
        refuse_model(name, error)
    missing = sorted(found["missing_keys"])
    needed = [key for key in missing if not _HARMLESS.search(key)]
    if needed and not model.config.is_encoder_decoder:
        raise UserError(
            f"--model {name} lacks {len(needed):,} of its weights, such as {needed[0]}; take a release that is whole"
        )
    return model, not any("pooler" in key for key in missing)


def refuse_model(name: str, error: Exception) -> NoReturn:
    """Raise a ``UserError`` for what a library raises about a model; a lack of memory is raised as it is."""
    if lacks_memory(error):
        raise error
    reason = one_line(error)
    reason = reason if len(reason) <= 4 * LONGEST else f"{reason[: 4 * LONGEST]} ..."
    raise UserError(f"--model {name} cannot be used for this: {reason}") from error


class PretrainedEncoder(ABC):
    """A model of images or sounds.

    Args:
        folder: where it is.
        name: for errors.
        device: where it runs.
        batch_size: pieces that go through it at once.

    Raises:
        UserError: it cannot be loaded.
    """

    _features: str  # the model's own method for the vector of a content, if it has one

    def __init__(self, folder: str, name: str, device: torch.device, batch_size: int) -> None:
        self.most_pieces = batch_size
        self.notes: list[str] = []
        self._name, self._device = name, device
        try:
            self._processor = self._load_processor(_transformers(), folder)
        except UserError:
            raise
        except Exception as error:
            refuse_model(name, error)
        model, self._has_pooler = load_model(folder, name)
        if model.config.is_encoder_decoder:
            model = model.get_encoder()
        self._model = model.to(device).train(False)

    @abstractmethod
    def _load_processor(self, transformers: Any, folder: str) -> Any:
        """Return what makes contents ready."""

    def shape(self, piece: Piece) -> Hashable:
        """Return the shapes of a piece's arrays."""
        return tuple((key, *value.shape) for key, value in sorted(piece.items()))

    def encode(self, pieces: list[Piece]) -> Vectors:
        """Return the vectors (n, width) of pieces of one shape.

        Raises:
            UserError: the model takes something else.
        """
        inputs = {key: torch.stack([piece[key] for piece in pieces]).to(self._device) for key in pieces[0]}
        try:
            with torch.inference_mode():
                vectors = self._pooled(inputs)
        except Exception as error:
            refuse_model(self._name, error)
        return np.asarray(vectors.float().cpu().numpy(), dtype=np.float32)

    def _pooled(self, inputs: Piece) -> torch.Tensor:
        """Return the model's own vector of each content; where it has none, the mean over places or time."""
        own = getattr(self._model, self._features, None)
        output = self._model(**inputs) if own is None else own(**inputs)
        pooled = getattr(output, "pooler_output", None)
        if pooled is not None and (own is not None or self._has_pooler):
            return torch.flatten(pooled, 1)
        states: torch.Tensor = output.last_hidden_state
        return states.mean(dim=1) if states.dim() == 3 else states.flatten(2).mean(dim=2)


def _single(inputs: Any) -> Piece:
    """Return what a processor has made of one content, without the axis of contents."""
    return {key: torch.as_tensor(np.asarray(value))[0] for key, value in inputs.items()}


class ImageEncoder(PretrainedEncoder):
    """A model of images: CLIP, SigLIP, DINOv2, ViT, ConvNeXT and their kin."""

    _features = "get_image_features"

    def _load_processor(self, transformers: Any, folder: str) -> Any:
        # Pillow's, whether torchvision is installed or not: they differ in the last digits.
        return transformers.AutoImageProcessor.from_pretrained(
            folder, backend="pil", trust_remote_code=False, local_files_only=True
        )

    def pieces(self, value: str) -> list[Piece]:
        """Return an image as the model takes it; the errors are those of ``read_image``."""
        return [_single(self._processor(images=[read_image(value)], return_tensors="np"))]


class SoundEncoder(PretrainedEncoder):
    """A model of sounds: wav2vec 2.0, HuBERT, WavLM, CLAP, AST, the encoder of Whisper and their kin.

    Args:
        folder: as the others.
        name: as the others.
        device: as the others.
        batch_size: as the others.
        max_seconds: of each sound, from its beginning, that count.
    """

    _features = "get_audio_features"

    def __init__(self, folder: str, name: str, device: torch.device, batch_size: int, *, max_seconds: float) -> None:
        super().__init__(folder, name, device, batch_size)
        self._max_seconds = max_seconds
        self.notes.append(
            f"the first {max_seconds:g} s of each sound count, in windows of {WINDOW_S:g} s whose features are averaged"
        )

    def _load_processor(self, transformers: Any, folder: str) -> Any:
        extractor = transformers.AutoFeatureExtractor.from_pretrained(
            folder, trust_remote_code=False, local_files_only=True
        )
        if not hasattr(extractor, "sampling_rate"):
            raise UserError(f"--model {self._name} is none of sounds; see docs/features.md for some that are")
        return extractor

    def pieces(self, value: str) -> list[Piece]:
        """Return the windows of a sound as the model takes them; the errors are those of ``read_windows``."""
        rate = self._processor.sampling_rate
        windows: Iterable[Any] = read_windows(value, rate=rate, max_seconds=self._max_seconds)
        return [
            _single(self._processor(window, sampling_rate=rate, return_tensors="np")) for window in windows
        ]  # fmt: skip
