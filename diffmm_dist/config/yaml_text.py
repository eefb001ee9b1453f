"""YAML read with suspicion: bounded in size, depth and what its aliases stand for, and no key twice."""

from typing import Any

import yaml

from diffmm_dist.errors import one_line

LARGEST_BYTES = 256 << 10
_DEEPEST = 20
_MOST_VALUES = 10_000  # counting what every alias stands for
_LONGEST = 32_768  # characters of one value
_LARGEST_BITS = 4_096
_MERGE = "tag:yaml.org,2002:merge"


def parse(text: str) -> Any:
    """Return what a YAML text holds, in plain Python values.

    Raises:
        ValueError: it is no YAML, too large, nested too deep, or sets a key twice; the text says which and where.
    """
    if len(text) > LARGEST_BYTES:
        raise ValueError(f"it is longer than {LARGEST_BYTES:,} characters")
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f" in line {mark.line + 1}, column {mark.column + 1}" if mark is not None else ""
        raise ValueError(f"{error.problem or error.context}{place}") from error
    except yaml.reader.ReaderError as error:
        raise ValueError(f"it holds the character U+{error.character:04X} at place {error.position}") from error
    except Exception as error:  # a tag that its value does not fit raises nearly anything
        raise ValueError(f"a value is not what its form or tag says: {one_line(error)}") from error


class _Loader(yaml.SafeLoader):
    """SafeLoader with bounds, which are checked while the text is read and before any value is made of it."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = 0
        self._sizes: dict[int, int] = {}

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        self._depth += 1
        if self._depth > _DEEPEST:
            raise self._problem(f"it is nested deeper than {_DEEPEST} levels", self._next_mark())
        alias = self._next_mark() if self.check_event(yaml.AliasEvent) else None
        node: yaml.Node | None = super().compose_node(parent, index)
        self._depth -= 1
        if node is not None and id(node) not in self._sizes:
            if alias is not None:
                raise self._problem("an alias stands for what it is part of", alias)
            self._sizes[id(node)] = self._measured(node)
        return node

    def _next_mark(self) -> Any:
        return self.peek_event().start_mark  # type: ignore[no-untyped-call]

    def _measured(self, node: yaml.Node) -> int:
        """Return how many values a node holds, those of its aliases counted again."""
        if isinstance(node, yaml.ScalarNode):
            self._check_scalar(node)
            return 1
        inner = node.value if isinstance(node, yaml.SequenceNode) else [part for pair in node.value for part in pair]
        size = 1 + sum(self._sizes[id(part)] for part in inner)
        if size > _MOST_VALUES:
            raise self._problem(f"it holds more than {_MOST_VALUES:,} values, aliases counted", node.start_mark)
        if isinstance(node, yaml.MappingNode):
            node.value = self._merged(node)
        return size

    def _merged(self, node: yaml.MappingNode) -> list[tuple[yaml.Node, yaml.Node]]:
        """Return the pairs of a map, keys as text and each once; what ``<<`` brings in yields to what stands there.

        PyYAML's own merging lets the wrong one win where merges are nested.
        """
        own: dict[str, tuple[yaml.Node, yaml.Node]] = {}
        inherited: dict[str, tuple[yaml.Node, yaml.Node]] = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise self._problem("a key is no plain text", key.start_mark)
            if key.value in own or (key.tag == _MERGE and inherited):
                raise self._problem(f"'{key.value[:80]}' is set twice", node.start_mark)
            if key.tag == _MERGE:
                for pair in self._brought_in(value):
                    inherited.setdefault(pair[0].value, pair)
            else:  # as text, since to Python the keys 1 and true are the same
                text = yaml.ScalarNode(self.DEFAULT_SCALAR_TAG, key.value, key.start_mark, key.end_mark, key.style)
                own[key.value] = text, value
        return [*(pair for name, pair in inherited.items() if name not in own), *own.values()]

    def _brought_in(self, value: yaml.Node) -> list[tuple[yaml.Node, yaml.Node]]:
        sources = value.value if isinstance(value, yaml.SequenceNode) else [value]
        if not all(isinstance(source, yaml.MappingNode) for source in sources):
            raise self._problem("'<<' must name a map or a list of maps", value.start_mark)
        return [pair for source in sources for pair in source.value]

    def _check_scalar(self, node: yaml.ScalarNode) -> None:
        if len(node.value) > _LONGEST:
            raise self._problem(f"a value is longer than {_LONGEST:,} characters", node.start_mark)
        if any(character == "\0" or "\ud800" <= character <= "\udfff" for character in node.value):
            raise self._problem("a value holds a character that is none", node.start_mark)

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        number: int = super().construct_yaml_int(node)
        if number.bit_length() > _LARGEST_BITS:
            raise self._problem("a number is too large", node.start_mark)
        return number

    @staticmethod
    def _problem(text: str, mark: Any) -> yaml.MarkedYAMLError:
        return yaml.constructor.ConstructorError(None, None, text, mark)


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)
