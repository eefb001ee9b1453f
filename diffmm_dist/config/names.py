"""Names of settings: which of them was meant by what somebody wrote."""

import re
from collections.abc import Iterator, Sequence
from difflib import get_close_matches

from diffmm_dist.config.form import Form, every_form
from diffmm_dist.config.section import Section
from diffmm_dist.errors import closest
from diffmm_dist.words import shortened


class Names:
    """All names of a kind of configuration, those of every variant.

    Args:
        root: the kind.
    """

    def __init__(self, root: type[Section]) -> None:
        self._forms = dict(every_form(root)) or {"": Form(root)}
        self._keys = list(dict.fromkeys(key for form in self._forms.values() for key in form.settings))

    def unknown_section(self, name: str, form: Form) -> str:
        """Return what is wrong with a section that does not exist, and which one may have been meant."""
        sections = form.names_in("")
        if name.partition(".")[0] in sections:
            return f"unknown key '{shortened(name)}'; write it as a key under its section"
        nearest = closest(name.lower(), sections) or self._elsewhere(name)
        return f"unknown key '{shortened(name)}'{nearest or '; the sections are ' + ', '.join(sections)}"

    def unknown_key(self, key: str, form: Form) -> str:
        """Return what is wrong with a key that a form does not have, and which one may have been meant."""
        others = [name for name, other in self._forms.items() if key in other.settings or key in other.sections]
        if others:
            chosen = f"{key.partition('.')[0]}.name"
            return (
                f"'{shortened(key)}' is for {chosen}={' or '.join(others)}, not {form.settings[chosen].field.default}"
            )
        section = form.section_of(key)
        name, last = key.removeprefix(f"{section}."), key.rpartition(".")[2]
        nearest = self._elsewhere(key) if self._ending_with(key) else ""
        if not nearest and not self._of_name(last):
            nearest = closest(name.lower(), form.names_in(section))
        return f"unknown key '{shortened(key)}'{nearest or self._elsewhere(last)}"

    def is_moved(self, key: str) -> bool:
        """Return whether a key that does not exist is the end of one that does."""
        return bool(self._ending_with(key))

    def _elsewhere(self, text: str) -> str:
        meant = self.meant_by(text)
        return f"; did you mean {' or '.join(repr(key) for key in meant)}?" if meant else ""

    def _ending_with(self, key: str) -> list[str]:
        return [known for known in self._keys if known.endswith(f".{key}")]

    def _of_name(self, name: str) -> list[str]:
        """Return the settings of a name: those that every variant has, or else all."""
        found = [key for key in self._keys if key.rpartition(".")[2] == name]
        of_all = [key for key in found if all(key in form.settings for form in self._forms.values())]
        return of_all or found

    def meant_by(self, text: str) -> list[str]:
        """Return the settings that a text may mean: ``epochs``, ``--train.epochs``, ``lr``, ``batch-size``.

        One with a section is compared with whole keys and their ends. Another is compared with the names alone, and all
        sections that have such a name are returned, but those that one variant alone has only where no other does: the
        same name first, then initials, beginnings and what is spelt alike.
        """
        text = re.sub(r"[^a-z0-9.]+", "_", text.lower()).strip("_.")
        if "." in text:
            return self._ending_with(text) or get_close_matches(text, self._keys, n=1, cutoff=0.75)
        names = list(dict.fromkeys(key.rpartition(".")[2] for key in self._keys))
        if text in names:
            return self._of_name(text)
        initials = [name for name in names if len(text) > 1 and "".join(word[0] for word in name.split("_")) == text]
        begun = [name for name in names if len(text) > 2 and name.startswith(text)]
        found = initials or begun or get_close_matches(text, names, n=1, cutoff=0.7)
        return [key for name in found for key in self._of_name(name)]

    def as_settings(self, text: str, value: str = "") -> str:
        """Return "; did you mean train.epochs=5?" for what was written in place of it, or how settings are written.

        Args:
            text: in place of the key.
            value: in place of the value, if there was any.
        """
        meant = [f"{key}={shortened(value) or 'VALUE'}" for key in self.meant_by(text)]
        if meant:
            return f"; did you mean {' or '.join(meant)}?"
        return "; a setting is given as section.key=value, see `config reference`"

    def malformed(self, words: Sequence[str]) -> Iterator[str]:
        """Yield what is wrong with words that are no ``section.key=value``: ``--epochs 5`` or ``epochs = 5``."""
        words = list(words)
        while words:
            written = words.pop(0)
            name, _, value = written.partition("=")
            while not value and words and (words[0].startswith("=") or self._takes(name, words[0])):
                following = words.pop(0)
                written, value = f"{written} {following}", following.removeprefix("=")
            yield f"'{shortened(written)}' is not of the form section.key=value{self.as_settings(name, value)}"

    def _takes(self, name: str, following: str) -> bool:
        """Tell whether a word that follows the name of a setting is its value, and not another name."""
        names = {text for key in self._keys for text in (key, key.rpartition(".")[2])}
        return bool(self.meant_by(name)) and not following.startswith("-") and following.partition("=")[0] not in names
