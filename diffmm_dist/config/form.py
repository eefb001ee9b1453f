"""The form of a configuration: which sections and settings it has, at any depth."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, get_origin

from pydantic.fields import FieldInfo

from diffmm_dist.config.section import Section, Variants


class Setting(NamedTuple):
    """One key of a form.

    Attributes:
        key: from the top, ``section.name``, with as many sections as there are.
        field: what it holds.
    """

    key: str
    field: FieldInfo


class Form:
    """All sections and settings of a kind of configuration.

    Args:
        root: the kind.
        names: of the variants that are meant, by the key of their section; the default elsewhere.

    Attributes:
        sections: by dotted key, the whole as "".
        settings: by dotted key, in the order of the reference page.
    """

    def __init__(self, root: type[Section], names: Mapping[str, str] | None = None) -> None:
        self.sections: dict[str, type[Section]] = {}
        self.settings: dict[str, Setting] = {}
        self._names = names or {}
        self._add("", root)

    def _add(self, key: str, section: type[Section]) -> None:
        self.sections[key] = section
        for name, field in section.model_fields.items():
            below = f"{key}.{name}" if key else name
            inner = self._section(below, field)
            if inner is None:
                self.settings[below] = Setting(below, field)
            else:
                self._add(below, inner)

    def _section(self, key: str, field: FieldInfo) -> type[Section] | None:
        variants = variants_of(field)
        if variants is not None:
            return variants.forms[self._names.get(key, variants.default)]
        kind: Any = field.annotation
        return kind if is_section(field) else None

    def section_of(self, key: str) -> str:
        """Return the key of the innermost section that a dotted key leads into."""
        while key not in self.sections:
            key = key.rpartition(".")[0]
        return key

    def names_in(self, section: str) -> list[str]:
        """Return the names of what stands in a section."""
        return list(self.sections[section].model_fields)


def is_section(field: FieldInfo) -> bool:
    """Tell a section from a setting."""
    kind = field.annotation  # list[str] counts as a type on Python 3.10
    return isinstance(kind, type) and get_origin(kind) is None and issubclass(kind, Section)


def variants_of(field: FieldInfo) -> Variants | None:
    """Return what a section may be, None for one that is always the same and for a setting."""
    return next((mark for mark in field.metadata if isinstance(mark, Variants)), None)


def variant_sections(root: type[Section]) -> dict[str, Variants]:
    """Return the sections of a root that are one of several, by their keys."""
    found = ((name, variants_of(field)) for name, field in root.model_fields.items())
    return {name: variants for name, variants in found if variants is not None}


def every_form(root: type[Section]) -> Iterator[tuple[str, Form]]:
    """Yield the name and the form of every variant, the default first."""
    for key, variants in variant_sections(root).items():
        for name in variants.forms:
            yield name, Form(root, {key: name})
