"""What tells runs apart: their names are their models and the settings in which they differ."""

from collections.abc import Mapping, Sequence
from typing import Any

from diffmm_dist import storage
from diffmm_dist.config.render import flatten
from diffmm_dist.runs.config import Config
from diffmm_dist.runs.run_folder import RESUMABLE_KEYS, RESUMABLE_SECTIONS
from diffmm_dist.words import shown

_PATH, _DATA, _MODEL, _SEED = "run.path", "data.path", "model.name", "run.seed"
_MOST = 4  # settings in a name
Settings = Mapping[str, Any]


def differing_settings(configs: Sequence[Config]) -> list[dict[str, Any]]:
    """Return of each run the settings in which the runs differ, but for their folders, by their whole keys."""
    settings = [flatten(config) for config in configs]
    every = dict.fromkeys(key for one in settings for key in one if key != _PATH)
    keys = [key for key in every if any(one.get(key) != settings[0].get(key) for one in settings)]
    return [{key: one[key] for key in keys if key in one} for one in settings]


def setting_words(settings: Settings) -> str:
    """Return settings as a command line has them."""
    return ", ".join(f"{key}={_plain(value)}" for key, value in settings.items())


def run_names(configs: Sequence[Config], paths: Sequence[str]) -> list[str]:
    """Return a name for each run, no two of them the same.

    It has the model, and the settings in which runs of the same model differ: of these first what reaches figures, and
    where and how a run was trained only if nothing else tells runs apart; last the name of the folder.

    Args:
        configs: of the runs.
        paths: their folders.
    """
    settings = [flatten(config) for config in configs]
    names = [_name(one, _like(one, settings), of_method=True) for one in settings]
    if len(set(names)) < len(names):
        names = [_name(one, _like(one, settings), of_method=False) for one in settings]
    if len(set(names)) < len(names):
        names = [
            f"{name} ({storage.name(path)})" if names.count(name) > 1 else name
            for name, path in zip(names, paths, strict=True)
        ]
    return [f"{name} #{names[:place].count(name) + 1}" if names.count(name) > 1 else name
            for place, name in enumerate(names)]  # fmt: skip


def _like(one: Settings, settings: Sequence[Settings]) -> list[Settings]:
    """Return the runs of the same model; what is said of all runs is compared with all of them."""
    return [other for other in settings if other[_MODEL] == one[_MODEL]]


def _name(one: Settings, like: Sequence[Settings], *, of_method: bool) -> str:
    keys = [key for key in one if key != _PATH and any(other.get(key) != one[key] for other in like)]
    keys = [key for key in keys if not of_method or _is_of_method(key)]
    keys.sort(key=lambda key: key == _SEED)  # stable: the seed comes last
    parts = [f"{_short(key, keys)}={_plain(_value(key, one[key]))}" for key in keys[:_MOST]]
    more = [f"{len(keys) - _MOST} more settings"] if len(keys) > _MOST else []
    return ", ".join([str(one[_MODEL]), *parts, *more])


def _is_of_method(key: str) -> bool:
    """Return whether a setting tells what was trained, not where, how far or how patiently."""
    section = key.partition(".")[0]
    resumable = key in RESUMABLE_KEYS and key not in (_DATA, "train.epochs", "train.patience")
    return section not in RESUMABLE_SECTIONS and not resumable and not key.startswith("eval.")


def _short(key: str, keys: Sequence[str]) -> str:
    """Return the last part of a key where it is clear what is meant."""
    if key == _DATA:
        return "data"
    last = key.rpartition(".")[2]
    return key if last in ("path", "name") or sum(other.rpartition(".")[2] == last for other in keys) > 1 else last


def _value(key: str, value: Any) -> Any:
    return storage.name(value) if key == _DATA else value


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else shown(value)
