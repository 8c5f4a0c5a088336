"""Reads pickles of numbers and containers. It executes no code of a file, and needs little more memory than the file.

Python's own unpickler is unsafe even if it calls nothing: a file of ten bytes can make it allocate gigabytes, and
keys of a dictionary can be chosen so that hashing them never ends. This interpreter knows only the instructions that
pickles of weights contain, and counts them.
"""

import codecs
import collections
import pickle
import pickletools
from collections.abc import Callable, Mapping
from typing import IO, Any

__all__ = ["DataUnpickler", "Named", "Opaque", "RefusedError", "Work", "shorten"]

MAX_INSTRUCTIONS = 1_000_000  # large checkpoints with the optimizer's state have about 100,000
MAX_INTEGER_BITS = 2048
MAX_UNUSUAL_KEYS = 1000  # tuples and numbers with a fraction: a file can choose them so that all hashes are equal
MAX_KEY = 2**60  # smaller integers are their own hash

OPCODES = {opcode.code: opcode for opcode in pickletools.opcodes}


class RefusedError(pickle.UnpicklingError):
    """A pickle names something other than numbers and containers; the message is that name."""


class Opaque:
    """Stands for an object that is not read."""

    def __init__(self, *_: Any):
        pass


class Named:
    """A function or class that a pickle names; `function` takes its place, None if the pickle must not call it."""

    def __init__(self, name: str, function: Callable[..., Any] | None):
        self.name = name
        self.function = function


class Work:
    """Counts the instructions of a file, which may hold pickles in pickles."""

    def __init__(self) -> None:
        self.left = MAX_INSTRUCTIONS
        self.unusual_keys_left = MAX_UNUSUAL_KEYS

    def spend(self, amount: int) -> None:
        """Raise an error if the file asks for more work than weights need."""
        self.left -= amount
        if self.left < 0:
            raise pickle.UnpicklingError(
                f"it holds more than {MAX_INSTRUCTIONS:,} small objects; save only its state dict"
            )

    def check_key(self, key: Any) -> None:
        """Raise an error for a key of a dictionary that is not plain or too costly."""
        if isinstance(key, str | bool | None) or (isinstance(key, int) and abs(key) < MAX_KEY):
            return
        self.unusual_keys_left -= 1
        parts = key if isinstance(key, tuple) else (key,)
        if self.unusual_keys_left < 0 or len(parts) > 16 or not all(isinstance(p, str | int | float) for p in parts):
            raise pickle.UnpicklingError("a dictionary has keys other than names and numbers")


class DataUnpickler:
    """Interprets one pickle.

    Args:
      file: at the beginning of the pickle; afterwards at its end.
      find: the stand-in for a full name, which raises `RefusedError` for names that are not allowed.
      work: counts; shared by all pickles of a file.
      persistent: the object for a persistent id; None refuses them.
    """

    def __init__(
        self,
        file: IO[bytes],
        find: Callable[[str], Named],
        work: Work,
        persistent: Callable[[Any], Any] | None = None,
    ):
        self.file = file
        self.find = find
        self.work = work
        self.persistent = persistent
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def load(self) -> Any:
        """The object.

        Raises:
          RefusedError: the pickle names what is not allowed.
          Exception: of any type, because the pickle is damaged.
        """
        while True:
            opcode = OPCODES[self.file.read(1).decode("latin1")]
            self.work.spend(1)
            argument = self._argument(opcode)
            if opcode.name == "STOP":
                return self.stack.pop()
            if opcode.name in LITERALS:
                if isinstance(argument, int) and argument.bit_length() > MAX_INTEGER_BITS:
                    raise pickle.UnpicklingError("it holds an absurdly large integer")
                self.stack.append(argument)
            elif opcode.name in HANDLERS:
                HANDLERS[opcode.name](self, argument)
            else:
                raise RefusedError(f"the pickle instruction {opcode.name}")

    def _argument(self, opcode: pickletools.OpcodeInfo) -> Any:
        if opcode.arg is None:
            return None
        if opcode.name == "STRING":  # of Python 2, whose strings were bytes
            text = pickletools.read_stringnl(self.file, decode=False)
            return codecs.escape_decode(text)[0].decode("latin1")
        return opcode.arg.reader(self.file)

    def _pop_to_mark(self) -> list[Any]:
        mark = self.marks.pop()
        items = self.stack[mark:]
        del self.stack[mark:]
        return items

    def _set_items(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, dict):
            raise pickle.UnpicklingError("only dictionaries have entries")
        for key, value in zip(items[::2], items[1::2], strict=True):
            self.work.check_key(key)
            target[key] = value

    def _extend(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, list):
            raise pickle.UnpicklingError("only lists have items")
        target += items

    def _pop(self) -> None:
        if self.marks and self.marks[-1] == len(self.stack):
            self.marks.pop()
        else:
            self.stack.pop()

    def _put_dict(self) -> None:
        items = self._pop_to_mark()
        self.stack.append({})
        self._set_items(items)

    def _add_items(self) -> None:
        self._pop_to_mark()  # no set is read

    def _freeze_set(self) -> None:
        self._pop_to_mark()
        self.stack.append(Opaque())

    def _put_global(self, name: str) -> None:
        self.stack.append(self.find(name))

    def _put_stack_global(self) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        if not (isinstance(name, str) and isinstance(module, str)):
            raise pickle.UnpicklingError("a name is not a text")
        self._put_global(f"{module}.{name}")

    def _reduce(self) -> None:
        arguments, named = self.stack.pop(), self.stack.pop()
        if not isinstance(named, Named) or not isinstance(arguments, tuple):
            raise pickle.UnpicklingError("it calls what is no function")
        if named.function is None:
            raise RefusedError(named.name)
        self.work.spend(sum(len(value) for value in arguments if isinstance(value, list | tuple | dict)))
        self.stack.append(named.function(*arguments))

    def _build(self) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        if hasattr(target, "__setstate__"):
            target.__setstate__(state)
        elif not isinstance(target, collections.OrderedDict | Opaque):  # their attributes are not read
            raise pickle.UnpicklingError("it gives a state to what has none")

    def _put_persistent(self, key: Any) -> None:
        if self.persistent is None:
            raise pickle.UnpicklingError("it refers to objects outside the file")
        self.stack.append(self.persistent(key))


# Instructions that push their argument.
LITERALS = {opcode.name for opcode in pickletools.opcodes if opcode.arg} & {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
    *("UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"),
}


def _memoize(unpickler: DataUnpickler, index: int | None) -> None:
    unpickler.memo[len(unpickler.memo) if index is None else index] = unpickler.stack[-1]


def _pops(count: int) -> Callable[[DataUnpickler, Any], None]:
    """The handler of an instruction that makes a tuple of the last `count` objects."""

    def handle(unpickler: DataUnpickler, _: Any) -> None:
        items = tuple(unpickler.stack[-count:])
        if len(items) < count:
            raise pickle.UnpicklingError("the stack is empty")
        unpickler.stack[-count:] = [items]

    return handle


def _pushes(make: Callable[[DataUnpickler], Any]) -> Callable[[DataUnpickler, Any], None]:
    """The handler of an instruction that pushes what `make` returns."""

    def handle(unpickler: DataUnpickler, _: Any) -> None:
        unpickler.stack.append(make(unpickler))

    return handle


HANDLERS: Mapping[str, Callable[[DataUnpickler, Any], None]] = {
    "PROTO": lambda u, _: None,
    "FRAME": lambda u, _: None,
    "MARK": lambda u, _: u.marks.append(len(u.stack)),
    "POP": lambda u, _: u._pop(),
    "POP_MARK": lambda u, _: u._add_items(),
    "DUP": _pushes(lambda u: u.stack[-1]),
    "NONE": _pushes(lambda u: None),
    "NEWTRUE": _pushes(lambda u: True),
    "NEWFALSE": _pushes(lambda u: False),
    "EMPTY_LIST": _pushes(lambda u: []),
    "EMPTY_TUPLE": _pushes(lambda u: ()),
    "EMPTY_DICT": _pushes(lambda u: {}),
    "EMPTY_SET": _pushes(lambda u: Opaque()),
    "LIST": _pushes(lambda u: u._pop_to_mark()),
    "TUPLE": _pushes(lambda u: tuple(u._pop_to_mark())),
    "TUPLE1": _pops(1),
    "TUPLE2": _pops(2),
    "TUPLE3": _pops(3),
    "DICT": lambda u, _: u._put_dict(),
    "FROZENSET": lambda u, _: u._freeze_set(),
    "APPEND": lambda u, _: u._extend([u.stack.pop()]),
    "APPENDS": lambda u, _: u._extend(u._pop_to_mark()),
    "SETITEM": lambda u, _: u._set_items([u.stack.pop(-2), u.stack.pop()]),
    "SETITEMS": lambda u, _: u._set_items(u._pop_to_mark()),
    "ADDITEMS": lambda u, _: u._add_items(),
    "PUT": _memoize,
    "BINPUT": _memoize,
    "LONG_BINPUT": _memoize,
    "MEMOIZE": _memoize,
    "GET": lambda u, index: u.stack.append(u.memo[index]),
    "BINGET": lambda u, index: u.stack.append(u.memo[index]),
    "LONG_BINGET": lambda u, index: u.stack.append(u.memo[index]),
    "GLOBAL": lambda u, names: u._put_global(names.replace(" ", ".", 1)),
    "STACK_GLOBAL": lambda u, _: u._put_stack_global(),
    "REDUCE": lambda u, _: u._reduce(),
    "NEWOBJ": lambda u, _: u._reduce(),
    "BUILD": lambda u, _: u._build(),
    "PERSID": lambda u, key: u._put_persistent(key),
    "BINPERSID": lambda u, _: u._put_persistent(u.stack.pop()),
}


def shorten(text: Any, length: int = 120) -> str:
    """A text of a file, fit for a message: without control characters, and cut."""
    start = str(text)[:length]
    printable = "".join(letter if letter.isprintable() else "?" for letter in start)
    return printable + ("..." if len(str(text)) > length else "")
