"""Reading a pickle as data: nothing in it is looked up, called or set, so it can be nothing but what is known here.

A pickle is a program. Instead of running it, its operations are read by the standard library's ``pickletools`` and
understood one by one. What names a class becomes a ``Name``; a SciPy sparse matrix becomes a ``PickledMatrix``, and
NumPy's numbers and arrays are made from bytes that must be in the file. Anything else is refused.
"""

import io
import pickletools
from collections.abc import Callable
from dataclasses import dataclass, field
from math import prod
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from diffmm_dist.errors import UserError, one_line

FORMATS = ("bsr", "coo", "csc", "csr", "dia")
_NUMBERS = "biuf"
_LARGEST_NUMBER = 1 << 64
_MOST_OPERATIONS = 5_000  # the pickle of a matrix takes up to 200, however large it is


class RefusedPickle(UserError):
    """A pickle asks for something that is not read."""


class Name(NamedTuple):
    """What a pickle looks up, as text."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass
class PickledMatrix:
    """A sparse matrix as it stands in a pickle: its format, and its attributes by name, which can be anything."""

    format: str
    attributes: dict[str, Any] = field(default_factory=dict)


@dataclass
class _Kind:
    """A type of numbers, in one of the two byte orders."""

    dtype: np.dtype[Any]


@dataclass
class _Array:
    """An array that is filled after it was made."""

    values: npt.NDArray[Any] | None = None


def load(data: bytes) -> Any:
    """Return what a pickle holds: a ``PickledMatrix``, or plain values.

    Args:
        data: the file's contents; what follows the pickle's end is not looked at.

    Raises:
        RefusedPickle: it asks for anything else than a sparse matrix needs.
        ValueError: it is no pickle, or cut off.
    """
    machine = _Machine()
    for number, (operation, argument, _) in enumerate(pickletools.genops(io.BytesIO(data))):
        if number == _MOST_OPERATIONS:
            raise RefusedPickle(f"it takes more than {_MOST_OPERATIONS:,} operations, more than any sparse matrix does")
        if operation.name == "STOP":
            break
        machine.do(operation.name, argument)
    return _filled(machine.result())


def _filled(value: Any) -> Any:
    """Return a value without the shell that an array is made in."""
    if isinstance(value, _Array):
        if value.values is None:
            raise RefusedPickle("it makes an array and never fills it")
        return value.values
    if isinstance(value, tuple | list):
        return tuple(_filled(part) for part in value) if all(isinstance(part, _Array) for part in value) else value
    if isinstance(value, PickledMatrix):
        value.attributes = {name: _filled(part) for name, part in value.attributes.items()}
    return value


_MARK = object()
_SKIPPED = frozenset({"PROTO", "FRAME"})
_TEXTS = frozenset(
    {"UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "STRING", "BINSTRING", "SHORT_BINSTRING"}
)
_VALUES = _TEXTS | {"BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8", "FLOAT", "BINFLOAT"}
_INTEGERS = frozenset({"INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4"})
_CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None, "NEWTRUE": lambda: True, "NEWFALSE": lambda: False, "EMPTY_TUPLE": tuple,
    "EMPTY_LIST": list, "EMPTY_DICT": dict, "MARK": lambda: _MARK,
}  # fmt: skip
_PUTS, _GETS = frozenset({"PUT", "BINPUT", "LONG_BINPUT"}), frozenset({"GET", "BINGET", "LONG_BINGET"})
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


class _Machine:
    """The stack and the memory of a pickle; both hold references, so neither grows faster than the file is long."""

    def __init__(self) -> None:
        self._stack: list[Any] = []
        self._memory: dict[int, Any] = {}

    def do(self, name: str, argument: Any) -> None:
        """Do one operation."""
        if name in _SKIPPED:
            return
        if name in _VALUES:
            self._stack.append(argument)
        elif name in _INTEGERS:
            self._stack.append(_small(argument))
        elif name in _CONSTANTS:
            self._stack.append(_CONSTANTS[name]())
        elif name in _PUTS:
            self._memory[argument] = self._last()
        elif name in _GETS:
            self._stack.append(self._remembered(argument))
        elif name in _TUPLES:
            parts = self._pop(_TUPLES[name])
            self._stack.append(tuple(parts))
        elif hasattr(self, f"_do_{name.lower()}"):
            getattr(self, f"_do_{name.lower()}")(argument)
        else:
            raise RefusedPickle(f"it holds the operation {name}, which no sparse matrix needs")

    def result(self) -> Any:
        """Return the value on top of the stack."""
        return self._pop(1)[0]

    def _last(self) -> Any:
        if not self._stack:
            raise ValueError("it keeps a value that is not there")
        return self._stack[-1]

    def _pop(self, count: int) -> list[Any]:
        if len(self._stack) < count or any(part is _MARK for part in self._stack[-count:]):
            raise ValueError("it takes more from its stack than is there")
        parts = self._stack[-count:]
        del self._stack[-count:]
        return parts

    def _top(self, kind: type) -> Any:
        if not self._stack or type(self._stack[-1]) is not kind:
            raise ValueError(f"a {kind.__name__} is missing on its stack")
        return self._stack[-1]

    def _since_mark(self) -> list[Any]:
        for place in range(len(self._stack) - 1, -1, -1):
            if self._stack[place] is _MARK:
                parts = self._stack[place + 1 :]
                del self._stack[place:]
                return parts
        raise ValueError("a mark is missing on its stack")

    def _remembered(self, place: int) -> Any:
        if place not in self._memory:
            raise ValueError(f"it asks for value {place}, which it has not kept")
        return self._memory[place]

    def _do_memoize(self, _: Any) -> None:
        self._memory[len(self._memory)] = self._last()

    def _do_tuple(self, _: Any) -> None:
        self._stack.append(tuple(self._since_mark()))

    def _do_list(self, _: Any) -> None:
        self._stack.append(self._since_mark())

    def _do_append(self, _: Any) -> None:
        (value,) = self._pop(1)
        self._top(list).append(value)

    def _do_appends(self, _: Any) -> None:
        values = self._since_mark()
        self._top(list).extend(values)

    def _do_dict(self, _: Any) -> None:
        self._stack.append(_pairs(self._since_mark()))

    def _do_setitem(self, _: Any) -> None:
        pair = self._pop(2)
        self._top(dict).update(_pairs(pair))

    def _do_setitems(self, _: Any) -> None:
        pairs = self._since_mark()
        self._top(dict).update(_pairs(pairs))

    def _do_global(self, argument: str) -> None:
        self._stack.append(_known(Name(*argument.split(" ", 1))))

    def _do_stack_global(self, _: Any) -> None:
        module, name = self._pop(2)
        if not (isinstance(module, str) and isinstance(name, str)):
            raise ValueError("it looks up a name that is no text")
        self._stack.append(_known(Name(module, name)))

    def _do_newobj(self, _: Any) -> None:
        kind, arguments = self._pop(2)
        if kind not in _SPARSE_CLASSES or arguments != ():
            raise RefusedPickle("it builds an object in an unusual way")
        self._stack.append(PickledMatrix(_SPARSE_CLASSES[kind]))

    def _do_reduce(self, _: Any) -> None:
        function, arguments = self._pop(2)
        if not isinstance(function, Name) or function not in _FUNCTIONS or not isinstance(arguments, tuple):
            raise RefusedPickle(f"it calls {function if isinstance(function, Name) else 'a value'}")
        self._stack.append(_FUNCTIONS[function](*arguments))

    def _do_build(self, _: Any) -> None:
        instance, state = self._pop(2)
        _fill(instance, state)
        self._stack.append(instance)


def _small(number: int) -> int:
    if not -_LARGEST_NUMBER < number < _LARGEST_NUMBER:
        raise RefusedPickle("it holds a whole number beyond 64 bits")
    return number


def _pairs(parts: list[Any]) -> dict[str, Any]:
    names, values = parts[::2], parts[1::2]
    if len(names) != len(values) or not all(isinstance(name, str) for name in names):
        raise RefusedPickle("it holds a map whose keys are no texts")
    return dict(zip(names, values, strict=True))


def _known(name: Name) -> Name:
    if name not in _SPARSE_CLASSES and name not in _FUNCTIONS and name not in _PLAIN_NAMES:
        raise RefusedPickle(f"it asks for {name}, which is not on the list of harmless classes")
    return name


def _fill(instance: Any, state: Any) -> None:
    """Give an object its state; classes and functions are names here and have none."""
    if isinstance(instance, PickledMatrix) and isinstance(state, dict):
        instance.attributes |= state
    elif isinstance(instance, _Array) and isinstance(state, tuple) and len(state) == 5:
        _, shape, kind, is_fortran, data = state
        instance.values = _array(data, kind, shape, "F" if is_fortran is True else "C")
    elif isinstance(instance, _Kind) and isinstance(state, tuple) and len(state) >= 5:
        if any(part is not None for part in state[2:5]):
            raise RefusedPickle("it holds values of a composed type, and only numbers are read")
        if state[1] in ("<", ">"):
            instance.dtype = instance.dtype.newbyteorder(state[1])
    else:
        raise RefusedPickle("it sets attributes of something that has none")


def _array(data: Any, kind: Any, shape: Any, order: Any) -> npt.NDArray[Any]:
    """Return an array over bytes of the pickle, which must be exactly as many as the shape says."""
    if isinstance(data, str):  # what Python 2 called bytes
        data = data.encode("latin1")
    if not isinstance(data, bytes | bytearray) or not isinstance(kind, _Kind) or order not in ("C", "F"):
        raise RefusedPickle("it makes an array of something else than bytes")
    if not isinstance(shape, tuple) or not all(type(size) is int and size >= 0 for size in shape) or len(shape) > 3:
        raise RefusedPickle("it makes an array of an impossible shape")
    if prod(shape) * kind.dtype.itemsize != len(data):
        raise RefusedPickle(f"it makes an array of shape {_text(shape)} from {len(data):,} bytes")
    return np.frombuffer(data, dtype=kind.dtype).reshape(shape, order=order)


def _text(shape: tuple[int, ...]) -> str:
    return f"({', '.join(f'{size:,}' for size in shape)})"


def _number_type(name: Any = None, *_: Any) -> _Kind:
    """In place of ``numpy.dtype``."""
    if not isinstance(name, str) or len(name) > 16:
        raise RefusedPickle("it holds values of a composed type, and only numbers are read")
    try:
        dtype = np.dtype(name)
    except (TypeError, ValueError) as error:
        raise RefusedPickle(f"it holds values of an unknown type: {one_line(error)}") from error
    if dtype.kind not in _NUMBERS or dtype.itemsize > 16:
        raise RefusedPickle(f"it holds values of type {dtype}, and only numbers are read")
    return _Kind(dtype)


def _reconstruct(*_: Any) -> _Array:
    return _Array()


def _scalar(kind: Any = None, data: Any = None, *_: Any) -> Any:
    return _array(data, kind, (1,), "C").item()


def _from_buffer(data: Any = None, kind: Any = None, shape: Any = None, order: Any = "C", *_: Any) -> npt.NDArray[Any]:
    return _array(data, kind, shape, order)


def _encode(text: Any = None, encoding: Any = None, *_: Any) -> bytes:
    """In place of ``_codecs.encode``: how old pickles write bytes."""
    if encoding != "latin1" or not isinstance(text, str):
        raise RefusedPickle("it holds bytes in an unusual encoding")
    return text.encode("latin1")


def _no_bytes(*arguments: Any) -> bytes:
    """In place of ``bytes``: how old pickles write none."""
    if arguments:
        raise RefusedPickle("it makes bytes by hand")
    return b""


def _bare_matrix(kind: Any = None, *_: Any) -> PickledMatrix:
    """In place of ``copyreg._reconstructor``: how old pickles make an object that is filled afterwards."""
    if kind not in _SPARSE_CLASSES:
        raise RefusedPickle("it builds an object in an unusual way")
    return PickledMatrix(_SPARSE_CLASSES[kind])


def _no_array(*_: Any) -> Any:
    raise RefusedPickle("it makes an array by hand")


_SPARSE_CLASSES = {
    Name(f"scipy.sparse.{prefix}{kind}", f"{kind}_{what}"): kind
    for kind in FORMATS
    for prefix in ("", "_")  # public in old SciPy, private in new
    for what in ("matrix", "array")
}
_FUNCTIONS: dict[Name, Callable[..., Any]] = {
    **{Name(f"numpy.{core}.multiarray", "_reconstruct"): _reconstruct for core in ("core", "_core")},
    **{Name(f"numpy.{core}.multiarray", "scalar"): _scalar for core in ("core", "_core")},
    **{Name(f"numpy.{core}.numeric", "_frombuffer"): _from_buffer for core in ("core", "_core")},
    **{Name(module, "_reconstructor"): _bare_matrix for module in ("copyreg", "copy_reg")},
    **{Name(module, "bytes"): _no_bytes for module in ("builtins", "__builtin__")},
    Name("numpy", "dtype"): _number_type,
    Name("numpy", "ndarray"): _no_array,
    Name("_codecs", "encode"): _encode,
}
_PLAIN_NAMES = frozenset({Name("builtins", "object"), Name("__builtin__", "object")})
