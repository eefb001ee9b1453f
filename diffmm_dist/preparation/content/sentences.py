"""Models of texts as sentence-transformers loads them, with their own pooling. The home of sentence-transformers."""

import os
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from diffmm_dist.errors import UserError
from diffmm_dist.preparation.content.encoder import Vectors
from diffmm_dist.preparation.content.items import ITEMS_PER_BLOCK
from diffmm_dist.preparation.content.model_folder import missing_extra
from diffmm_dist.preparation.content.pretrained import load_model, refuse_model

_VOCABULARIES = ("tokenizer.json", "vocab.txt", "vocab.json", "*.model")
_NO_LIMIT = 1_000_000  # of tokens, from which on the library says that it knows none


class TextEncoder:
    """A model of texts.

    Args:
        folder: where it is; without a ``modules.json`` its token vectors are averaged.
        name: for errors.
        device: where it runs.
        batch_size: texts that go through it at once, of similar lengths.
        prompt: put before every text; empty for the model's own, if it has one.

    Raises:
        UserError: it cannot be loaded.
    """

    most_pieces = ITEMS_PER_BLOCK  # the library sorts them by length

    def __init__(self, folder: str, name: str, device: torch.device, batch_size: int, *, prompt: str) -> None:
        try:
            from sentence_transformers import SentenceTransformer
        except ImportError as error:
            raise missing_extra("a model of texts", "sentence-transformers") from error
        _check_tokenizer(folder, name)
        if os.path.isfile(os.path.join(folder, "config.json")):
            load_model(folder, name)  # which sees that no weights are missing, of which the library says nothing
        try:
            self._model: Any = SentenceTransformer(
                folder,
                device=str(device),
                trust_remote_code=False,
                local_files_only=True,
                model_kwargs={"use_safetensors": True, "dtype": torch.float32},
            )
            self._encode(["text"], batch_size, prompt)
        except Exception as error:
            refuse_model(name, error)
        self._batch_size, self._prompt = batch_size, prompt
        longest = self._model.max_seq_length
        read = f"the first {longest:,} tokens of each text count, which is what the model reads"
        self.notes = [read] if longest and longest < _NO_LIMIT else []

    def pieces(self, value: str) -> list[str]:
        """Return the text."""
        return [value]

    def shape(self, piece: str) -> Hashable:
        """Return the same for all."""
        return ()

    def encode(self, pieces: list[str]) -> Vectors:
        """Return the vectors (n, width) of texts."""
        return self._encode(pieces, self._batch_size, self._prompt)

    def _encode(self, texts: list[str], batch_size: int, prompt: str) -> Vectors:
        vectors = self._model.encode(texts, batch_size=batch_size, prompt=prompt or None, show_progress_bar=False)
        return np.asarray(vectors, dtype=np.float32)


def _check_tokenizer(folder: str, name: str) -> None:
    """Refuse a folder without a vocabulary, instead of which the library takes one that knows no word."""
    if not any(path for pattern in _VOCABULARIES for path in Path(folder).rglob(pattern)):
        raise UserError(f"--model {name} holds no tokenizer, so it reads no texts; copy the whole folder of the model")
