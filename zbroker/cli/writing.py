r"""Records as standard output: records in, bytes out.

Pure. Owns the forms that `consume` writes: the value alone, key and value, JSON, a format of the user's; and how
control bytes look on a terminal. Works on whole batches of records. A pipe gets bytes as they are.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any

import msgspec

from zbroker.cli.reading import Bytes, Text
from zbroker.cli.visible import printable_json, visible
from zbroker.cli.words import unescape
from zbroker.client.records import Record

Writer = Callable[[Iterable[Record]], bytes]

_FIELDS = "tpoTkvh"
_TOKEN = re.compile(r"%(.?)", re.DOTALL)


class OutputRecord(msgspec.Struct):
    """One line of `--json`."""

    topic: str
    partition: int
    offset: int
    timestamp: int
    key: Text
    value: Text
    headers: list[tuple[str, Text]]


_encode = msgspec.json.Encoder().encode


def lines(separator: bytes | None, terminator: bytes, *, terminal: bool) -> Writer:
    r"""Values, each with a terminator; with a separator, the key and the separator in front. A null is empty."""
    if terminal:
        return _terminal_lines(separator, b"\\0\n" if terminator == b"\0" else terminator)
    if separator is None:

        def values(records: Iterable[Record]) -> bytes:
            parts = [record.value or b"" for record in records]
            parts.append(b"")
            return terminator.join(parts)

        return values

    def keyed(records: Iterable[Record]) -> bytes:
        parts: list[bytes] = []
        for record in records:
            parts += (record.key or b"", separator, record.value or b"", terminator)
        return b"".join(parts)

    return keyed


def _terminal_lines(separator: bytes | None, terminator: bytes) -> Writer:
    def shown(records: Iterable[Record]) -> bytes:
        parts: list[bytes] = []
        for record in records:
            if separator is not None:
                parts += (visible(record.key or b""), separator)
            parts += (visible(record.value or b""), terminator)
        return b"".join(parts)

    return shown


def json_lines(*, terminal: bool) -> Writer:
    """One JSON object a line."""

    def written(records: Iterable[Record]) -> bytes:
        parts = [_encode(to_json(record)) for record in records]
        if terminal:
            parts = [printable_json(part) for part in parts]
        parts.append(b"")
        return b"\n".join(parts)

    return written


def to_json(record: Record) -> OutputRecord:
    """A record as `--json` writes it: text where bytes are UTF-8."""
    return OutputRecord(
        record.topic,
        record.partition,
        record.offset,
        record.timestamp,
        _text(record.key),
        _text(record.value),
        [(name, _text(value)) for name, value in record.headers],
    )


def formatted(form: str, *, terminal: bool) -> Writer:
    r"""Records by a format: %t topic, %p partition, %o offset, %T timestamp, %k key, %v value, %h headers, %% percent.

    `\t \n \0 \xNN` are escapes; headers are written `name=value,name=value`; what is null is empty.

    Raises:
        ValueError: a % or a backslash that means nothing.
    """
    template: list[bytes] = []
    fields: list[Callable[[Record], Any]] = []
    end = 0
    for match in _TOKEN.finditer(form):
        template.append(unescape(form[end : match.start()]).replace(b"%", b"%%"))
        template.append(_token(match[1], fields, terminal))
        end = match.end()
    template.append(unescape(form[end:]).replace(b"%", b"%%"))
    pattern = b"".join(template)

    def written(records: Iterable[Record]) -> bytes:
        return b"".join(
            [pattern % tuple([field(record) for field in fields]) for record in records]
        )

    return written


def _token(letter: str, fields: list[Callable[[Record], Any]], terminal: bool) -> bytes:
    if letter == "%":
        return b"%%"
    if letter not in _FIELDS or not letter:
        names = " ".join(f"%{name}" for name in _FIELDS)
        raise ValueError(f"found '%{letter}', expected {names} or %%")
    show: Callable[[bytes], bytes] = visible if terminal else bytes
    getters: dict[str, Callable[[Record], Any]] = {
        "t": lambda record: record.topic.encode(),
        "p": lambda record: record.partition,
        "o": lambda record: record.offset,
        "T": lambda record: record.timestamp,
        "k": lambda record: show(record.key or b""),
        "v": lambda record: show(record.value or b""),
        "h": lambda record: show(_headers(record)),
    }
    fields.append(getters[letter])
    return b"%d" if letter in "poT" else b"%b"


def _headers(record: Record) -> bytes:
    return b",".join(
        name.encode() if value is None else name.encode() + b"=" + value
        for name, value in record.headers
    )


def _text(data: bytes | None) -> Text:
    if data is None:
        return None
    try:
        return data.decode()
    except UnicodeDecodeError:
        return Bytes(data)
