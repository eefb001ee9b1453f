"""Names of settings: which of them was meant by what somebody wrote."""

import re
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from typing import NamedTuple

from pydantic.fields import FieldInfo

from diffmm_dist.config.schema import Config, Section
from diffmm_dist.errors import closest
from diffmm_dist.words import shortened


class Setting(NamedTuple):
    """One key of the schema."""

    section: str
    name: str
    field: FieldInfo

    @property
    def key(self) -> str:
        """``section.name``."""
        return f"{self.section}.{self.name}"


def settings() -> Iterator[Setting]:
    """Yield every setting there is, in the order of the reference page."""
    for section, group in Config.model_fields.items():
        assert isinstance(group.annotation, type)
        assert issubclass(group.annotation, Section)
        for name, field in group.annotation.model_fields.items():
            yield Setting(section, name, field)


def unknown_section(name: str) -> str:
    """Return what is wrong with a section that does not exist, and which one may have been meant."""
    sections = list(Config.model_fields)
    if name.partition(".")[0] in sections:
        return f"unknown key '{shortened(name)}'; write it as a key under its section"
    nearest = closest(name.lower(), sections) or _elsewhere(name) or f"; the sections are {', '.join(sections)}"
    return f"unknown key '{shortened(name)}'{nearest}"


def unknown_key(section: str, name: str) -> str:
    """Return what is wrong with a key that its section does not have, and which one may have been meant."""
    here = [setting.name for setting in settings() if setting.section == section]
    nearest = "" if name in _keys_of_name(name) else _elsewhere(name)
    if not any(setting.name == name for setting in settings()):
        nearest = closest(name.lower(), here) or nearest
    return f"unknown key '{shortened(f'{section}.{name}')}'{nearest}"


def _elsewhere(name: str) -> str:
    meant = meant_by(name)
    return f"; did you mean {' or '.join(repr(key) for key in meant)}?" if meant else ""


def meant_by(text: str) -> list[str]:
    """Return the settings that a text may mean: ``epochs``, ``--train.epochs``, ``lr``, ``batch-size``.

    One with a section is compared with whole keys. Another is compared with the names alone, and all sections that have
    such a name are returned: the same name first, then initials, beginnings and what is spelt alike.
    """
    text = re.sub(r"[^a-z0-9.]+", "_", text.lower()).strip("_.")
    known = list(settings())
    if "." in text:
        return get_close_matches(text, [setting.key for setting in known], n=1, cutoff=0.75)
    names = list(dict.fromkeys(setting.name for setting in known))
    if text in names:
        return _keys_of_name(text)
    initials = [name for name in names if len(text) > 1 and "".join(word[0] for word in name.split("_")) == text]
    begun = [name for name in names if len(text) > 2 and name.startswith(text)]
    found = initials or begun or get_close_matches(text, names, n=1, cutoff=0.7)
    return [key for name in found for key in _keys_of_name(name)]


def _keys_of_name(name: str) -> list[str]:
    return [setting.key for setting in settings() if setting.name == name]


def as_settings(text: str, value: str = "") -> str:
    """Return "; did you mean train.epochs=5?" for what was written in place of it, or how settings are written.

    Args:
        text: in place of the key.
        value: in place of the value, if there was any.
    """
    meant = [f"{key}={shortened(value) or 'VALUE'}" for key in meant_by(text)]
    if meant:
        return f"; did you mean {' or '.join(meant)}?"
    return "; a setting is given as section.key=value, see `config reference`"


def malformed(words: Sequence[str]) -> Iterator[str]:
    """Yield what is wrong with words that are no ``section.key=value``, such as ``--epochs 5`` or ``epochs = 5``."""
    words = list(words)
    while words:
        written = words.pop(0)
        name, _, value = written.partition("=")
        while not value and words and (words[0].startswith("=") or _takes(name, words[0])):
            following = words.pop(0)
            written, value = f"{written} {following}", following.removeprefix("=")
        yield f"'{shortened(written)}' is not of the form section.key=value{as_settings(name, value)}"


def _takes(name: str, following: str) -> bool:
    """Tell whether a word that follows the name of a setting is its value, and not another name."""
    names = {text for setting in settings() for text in (setting.key, setting.name)}
    return bool(meant_by(name)) and not following.startswith("-") and following.partition("=")[0] not in names
