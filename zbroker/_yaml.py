"""YAML whose every value knows its file, line and column, so that an error can say where it is.

Owns reading a file into `Item`s and the errors of form: what is not YAML, keys given twice, unknown or missing
keys, a list where a text belongs. Knows nothing of what the values mean; that is `config`.

Scalars are taken as they are written: `retention: 7d`, `partitions: 4` and `address: 10:5550` all reach the
reader as text, so that no YAML rule about sixty-based numbers or octals comes between people and what they wrote.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NoReturn, TypeVar

import yaml

from zbroker.errors import ConfigError
from zbroker.topics import did_you_mean

T = TypeVar("T")

FILE_SIZE_MAX = 1 << 20
"""The largest configuration file, in bytes. People write kilobytes."""

_TAGS = "tag:yaml.org,2002:"
_KINDS = {
    "null": "nothing",
    "bool": "the yes-or-no value",
    "int": "the number",
    "float": "the number",
    "timestamp": "the date",
    "str": "",
    "merge": "",
    "value": "",
}
# YAML 1.1 gives << and = a meaning of their own; here they are texts like any other.
_TEXTS = ("str", "merge", "value")


class Item:
    """One value of a YAML file and where it stands."""

    def __init__(self, file: Path, node: yaml.Node) -> None:
        self.file = file
        self._node = node

    @property
    def place(self) -> str:
        """`file:line:column`, counted from 1."""
        mark = self._node.start_mark
        return f"{self.file}:{mark.line + 1}:{mark.column + 1}"

    def fail(self, problem: str) -> NoReturn:
        """Raises the `ConfigError` that says where this value is and what is wrong with it."""
        mark = self._node.start_mark
        raise _error(self.file, mark.line, mark.column, problem)

    @property
    def is_mapping(self) -> bool:
        return isinstance(self._node, yaml.MappingNode)

    def describe(self) -> str:
        """What was found here, for an error.

        `the number '7'`, `a list`, `nothing`.
        """
        if isinstance(self._node, yaml.MappingNode):
            return "a mapping"
        if isinstance(self._node, yaml.SequenceNode):
            return "a list"
        if self._kind == "null":
            return "nothing"
        return f"{_KINDS.get(self._kind, '')} {self._node.value!r}".strip()

    def text(self, expected: str) -> str:
        """A scalar as it is written, whatever YAML takes it for. `expected` goes into the error."""
        if not isinstance(self._node, yaml.ScalarNode) or self._kind == "null":
            self.fail(f"found {self.describe()}, expected {expected}")
        if self._kind not in _KINDS:
            self.fail(f"found the tag {self._node.tag!r}, expected {expected}")
        return str(self._node.value)

    def name(self, expected: str) -> str:
        """A scalar that YAML too takes for text: `no` and `1` are asked to be put in quotes."""
        text = self.text(expected)
        if self._kind not in _TEXTS:
            self.fail(f"found {self.describe()}, expected {expected}; put it in quotes")
        return text

    def parsed(self, parse: Callable[[str], T], expected: str) -> T:
        """A scalar's text put through `parse`, whose `ValueError` becomes an error with its place."""
        text = self.text(expected)
        try:
            return parse(text)
        except ValueError as problem:
            self.fail(str(problem))

    def entries(self, expected: str) -> dict[str, tuple[Item, Item]]:
        """A mapping as key → (the key's item, the value's item), in the file's order."""
        if not isinstance(self._node, yaml.MappingNode):
            self.fail(f"found {self.describe()}, expected {expected}")
        entries: dict[str, tuple[Item, Item]] = {}
        for key_node, value_node in self._node.value:
            key = Item(self.file, key_node)
            name = key.name("a key")
            if name in entries:
                first = entries[name][0]._node.start_mark.line + 1
                key.fail(f"key {name!r} is given twice, first in line {first}")
            entries[name] = key, Item(self.file, value_node)
        return entries

    def fields(
        self, known: Sequence[str], *, required: Sequence[str] = (), expected: str
    ) -> dict[str, Item]:
        """A mapping with a closed list of keys: those that are there, as name → value."""
        entries = self.entries(expected)
        for name, (key, _) in entries.items():
            if name not in known:
                key.fail(f"unknown key {name!r}{did_you_mean(name, known)}")
        for name in required:
            if name not in entries:
                self.fail(f"the key {name!r} is missing in {expected}")
        return {name: value for name, (_, value) in entries.items()}

    def elements(self, expected: str) -> Iterator[Item]:
        """A list's elements."""
        if not isinstance(self._node, yaml.SequenceNode):
            self.fail(f"found {self.describe()}, expected {expected}")
        return (Item(self.file, node) for node in self._node.value)

    @property
    def _kind(self) -> str:
        tag = str(self._node.tag)
        return tag.removeprefix(_TAGS) if tag.startswith(_TAGS) else tag


def read(file: Path) -> Item:
    """The one document in a YAML file.

    Raises:
        ConfigError: the file cannot be read, or is not YAML.
    """
    try:
        with file.open("rb") as stream:
            data = stream.read(FILE_SIZE_MAX + 1)
    except OSError as problem:
        reason = (problem.strerror or str(problem)).lower()
        raise ConfigError(f"{file}: cannot be read: {reason}", file=str(file)) from None
    return parse(data, file)


def parse(data: bytes, file: Path) -> Item:
    """The one document in a YAML text; `file` is what errors call it. Raises as `read` does."""
    if len(data) > FILE_SIZE_MAX:
        raise _error(file, 0, 0, f"found more than {FILE_SIZE_MAX} bytes, expected a YAML file")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as problem:
        before = data[: problem.start].decode("utf-8-sig", "replace")
        found = data[problem.start]
        raise _error(
            file, *_position(before), f"found the byte 0x{found:02x}, expected UTF-8"
        ) from None
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
    except yaml.MarkedYAMLError as problem:
        mark = problem.problem_mark or problem.context_mark
        line, column = (mark.line, mark.column) if mark is not None else (0, 0)
        parts = [part for part in (problem.context, problem.problem) if part]
        raise _error(file, line, column, f"not YAML: {', '.join(parts)}") from None
    except yaml.reader.ReaderError as problem:
        character = ord(text[problem.position])
        raise _error(
            file,
            *_position(text[: problem.position]),
            f"found the control character U+{character:04X}, expected text",
        ) from None
    except (ValueError, OverflowError):  # of chr(), for an escape such as "\U99999999"
        mark = loader.get_mark()
        raise _error(
            file, mark.line, mark.column, "not YAML: found an escape that is no character"
        ) from None
    except RecursionError:
        raise _error(file, 0, 0, "not YAML: nested too deeply") from None
    if node is None:
        raise _error(file, 0, 0, "found an empty file, expected a mapping of keys to values")
    return Item(file, node)


def _position(before: str) -> tuple[int, int]:
    """Line and column, from 0, of what follows `before`."""
    return before.count("\n"), len(before) - (before.rfind("\n") + 1)


def _error(file: Path, line: int, column: int, problem: str) -> ConfigError:
    return ConfigError(
        f"{file}:{line + 1}:{column + 1}: {problem}",
        file=str(file),
        line=line + 1,
        column=column + 1,
        problem=problem,
    )
