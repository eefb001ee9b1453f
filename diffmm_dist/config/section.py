"""What settings are made of: sections of keys, the types of their values, and rules between them."""

from collections.abc import Callable, Mapping
from functools import partial
from operator import attrgetter
from typing import Annotated, Any, ClassVar, NamedTuple, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, SerializeAsAny

from diffmm_dist.places import settle, settle_local

Number = Annotated[float, Field(allow_inf_nan=False)]
Probability = Annotated[Number, Field(ge=0.0, le=1.0)]
NonNegative = Annotated[Number, Field(ge=0.0)]
Positive = Annotated[Number, Field(gt=0.0)]
Seconds = Annotated[Number, Field(gt=0, le=86_400)]
LARGEST_COUNT = 10**9
Natural = Annotated[int, Field(ge=0, le=LARGEST_COUNT)]
Count = Annotated[int, Field(ge=1, le=LARGEST_COUNT)]
Location = Annotated[str, Field(min_length=1), AfterValidator(settle)]
Destination = Annotated[str, Field(min_length=1), AfterValidator(partial(settle, to_write=True))]
Folder = Annotated[str, Field(min_length=1), AfterValidator(settle_local)]


class Rule(NamedTuple):
    """What settings have to be together.

    Attributes:
        keys: the settings it looks at, each from the configuration's top: ``model.num_layers``.
        mistake: says what is wrong with their values, or nothing.
    """

    keys: tuple[str, ...]
    mistake: Callable[..., str | None]


def rule(*keys: str) -> Callable[[Callable[..., str | None]], Rule]:
    """Make a function the rule of some settings."""
    return partial(Rule, keys)


class Section(BaseModel):
    """A group of settings and of further sections: immutable, and unknown keys are errors.

    Attributes:
        rules: of the settings below it, and of these with others.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)
    rules: ClassVar[tuple[Rule, ...]] = ()


Changed = TypeVar("Changed", bound=Section)


def changed(section: Changed, values: Mapping[str, Any]) -> Changed:
    """Return a section with other values, by dotted keys; nothing is checked."""
    for key, value in values.items():
        name, _, below = key.partition(".")
        inner = changed(getattr(section, name), {below: value}) if below else value
        section = section.model_copy(update={name: inner})
    return section


class Variants:
    """A section whose settings depend on its key ``name``.

    Args:
        forms: the sections that it may be, by their names, the default first; looked up when they are needed.
    """

    def __init__(self, forms: Mapping[str, type[Section]]) -> None:
        self.forms = forms

    @property
    def default(self) -> str:
        """The name where none is written."""
        return next(iter(self.forms))

    def __call__(self, value: Any) -> Any:
        """Return the section that a tree is meant to be."""
        return self.forms[value.get("name", self.default)].model_validate(value) if isinstance(value, dict) else value


def one_of(forms: Mapping[str, type[Section]]) -> Any:
    """Return the type of a section that is one of several, by its key ``name``."""
    variants = Variants(forms)
    return Annotated[SerializeAsAny[Section], BeforeValidator(variants), variants]


def broken_rules(rules: tuple[Rule, ...], values: Mapping[str, Any]) -> list[tuple[Rule, str]]:
    """Return the rules that are broken, and how.

    Args:
        rules: which to look at.
        values: by dotted key; a rule that looks at another one, such as one whose value is wrong, is left out.
    """
    found = []
    for one in rules:
        if all(key in values for key in one.keys):
            mistake = one.mistake(*(values[key] for key in one.keys))
            if mistake is not None:
                found.append((one, mistake))
    return found


def all_rules(config: Section) -> tuple[Rule, ...]:
    """Return the rules of a configuration and of the sections in it."""
    below = (getattr(config, name) for name in type(config).model_fields)
    return sum((all_rules(part) for part in below if isinstance(part, Section)), config.rules)


def check_rules(config: Section) -> None:
    """Raise a ``ValueError`` if a whole configuration breaks a rule."""
    rules = all_rules(config)
    values = {key: attrgetter(key)(config) for one in rules for key in one.keys}
    broken = broken_rules(rules, values)
    if broken:
        raise ValueError("; ".join(sentence for _, sentence in broken))
