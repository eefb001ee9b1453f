"""The folder of a model, on a disk or fetched from the Hugging Face hub: weights as safetensors, and no code."""

import hashlib
import os
import re
from pathlib import Path

from diffmm_dist.checksums import file_sha256
from diffmm_dist.errors import TryAgainError, UserError, may_pass, one_line
from diffmm_dist.places import is_remote, settle
from diffmm_dist.regular_files import open_regular
from diffmm_dist.words import shortened

_HUB_NAME = re.compile(r"([A-Za-z0-9][\w.-]*(?:/[A-Za-z0-9][\w.-]*)?)(?:@([\w./-]+))?", re.ASCII)
# What a model is made of. Nothing that would have to be unpickled or run is fetched or counts.
_WANTED = ("*.json", "*.safetensors", "*.txt", "*.model", "*.jinja")
_NOT_WANTED = ("onnx/*", "openvino/*", "original/*", "consolidated*")
_PICKLED = {".bin", ".pt", ".pth", ".pkl", ".ckpt"}
_REMEDY = "give the folder of a model that was copied here, see docs/features.md"


def model_folder(name: str) -> str:
    """Return the local folder of a model.

    Args:
        name: a folder, or a name on the hub such as ``sentence-transformers/all-MiniLM-L6-v2``, perhaps with a commit,
            a branch or ``refs/pr/N`` behind an ``@``.

    Raises:
        UserError: there is none, or its weights are pickled.
        TryAgainError: the hub did not answer.
    """
    if is_remote(name):
        raise UserError(f"--model {name} is an address; {_REMEDY}")
    place = settle(name)
    if not os.path.isdir(place):
        match = _HUB_NAME.fullmatch(name)
        if os.path.lexists(place) or match is None:
            raise UserError(f"--model {name} is neither a folder nor a name on the hub; {_REMEDY}")
        place = _fetched(match[1], match[2])
    _check(place)
    return place


def _fetched(name: str, revision: str | None) -> str:
    """Return the folder into which the hub's client has put a model, now or before."""
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise missing_extra("a model from the hub", "huggingface_hub") from error
    try:
        return str(
            snapshot_download(name, revision=revision, allow_patterns=list(_WANTED), ignore_patterns=list(_NOT_WANTED))
        )
    except Exception as error:  # of the client's many kinds
        kind = TryAgainError if may_pass(error) else UserError
        reason = shortened(one_line(error))
        raise kind(f"--model {name} is no folder here, and the hub did not give it: {reason}; {_REMEDY}") from error


def missing_extra(what: str, package: str) -> UserError:
    """Return the error where a package of the extra is not installed."""
    return UserError(f"{what} needs {package}: install it with pip install 'diffmm-dist[features]'")


def _check(folder: str) -> None:
    """Refuse a folder that holds no model, or one whose weights could run code."""
    names = {path.relative_to(folder) for path in Path(folder).rglob("*") if path.is_file()}
    if not {Path("config.json"), Path("modules.json")} & names:
        raise UserError(f"--model {folder} holds no config.json, so it is no model; {_REMEDY}")
    safe = {name.parent for name in names if name.suffix == ".safetensors"}
    pickled = sorted(str(name) for name in names if name.suffix in _PICKLED and name.parent not in safe)
    if pickled or not safe:
        found = f"its weights are pickled ({pickled[0]})" if pickled else "it holds no weights"
        raise UserError(
            f"--model {folder}: {found}; pickles can run code, so only .safetensors are read: take a release of the "
            "model that has them, see docs/features.md"
        )


def fingerprint_of(folder: str) -> str:
    """Return a hash of all that a model is made of, in hexadecimal."""
    digest = hashlib.sha256()
    names = {path for pattern in _WANTED for path in Path(folder).rglob(pattern) if path.is_file()}
    for path in sorted(names):
        with open_regular(path) as file:
            digest.update(f"{path.relative_to(folder)}\0{file_sha256(file)}\n".encode())
    return digest.hexdigest()
