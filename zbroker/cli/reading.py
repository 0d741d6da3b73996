"""Standard input as records: bytes in, records out.

Pure. Owns where a record ends, where its key ends, and the JSON form. Works on whole chunks, since a loop over each
line would be the slowest thing between a file and the broker. Never decides what becomes of a bad record.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from zbroker.client.records import Headers

INT64 = (-(2**63), 2**63 - 1)


class Splitter:
    """Cuts a stream into records at a terminator.

    The last record needs no terminator, a trailing one makes no extra record, an empty record is a record. A record
    longer than `limit` comes out cut to one byte more than that, so that memory stays bounded and it can be refused.
    """

    def __init__(self, terminator: bytes, limit: int) -> None:
        self._terminator = terminator
        self._limit = limit
        self._pieces: list[bytes] = []
        self._held = 0

    def feed(self, chunk: bytes) -> list[bytes]:
        """The records that are complete now."""
        records = chunk.split(self._terminator)
        rest = records.pop()
        if records and self._pieces:
            self._hold(records[0])
            records[0] = self._take()
        if rest:
            self._hold(rest)
        if records and len(max(records, key=len)) > self._limit:
            records = [record[: self._limit + 1] for record in records]
        return records

    def finish(self) -> list[bytes]:
        """The last record, where no terminator stands behind it."""
        return [self._take()] if self._held else []

    def _hold(self, piece: bytes) -> None:
        room = self._limit + 1 - self._held
        if room > 0 and piece:
            piece = piece[:room]
            self._pieces.append(piece)
            self._held += len(piece)

    def _take(self) -> bytes:
        record = b"".join(self._pieces)
        self._pieces = []
        self._held = 0
        return record


def split_keys(
    records: Sequence[bytes], separator: bytes
) -> tuple[list[bytes], list[bytes], list[int]]:
    """Keys, values, and the indexes of records without the separator, which are in neither list.

    >>> split_keys([b"a=1=2", b"oops", b"=3"], b"=")
    ([b'a', b''], [b'1=2', b'3'], [1])
    """
    parts = [record.partition(separator) for record in records]
    bad = [index for index, part in enumerate(parts) if not part[1]]
    if bad:
        parts = [part for part in parts if part[1]]
    return [part[0] for part in parts], [part[2] for part in parts], bad


# JSON ---------------------------------------------------------------------------------------------


class Bytes(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """Bytes that are not UTF-8, as `{"base64": …}`."""

    base64: bytes


Text = str | Bytes | None


class JsonRecord(msgspec.Struct, forbid_unknown_fields=True):
    """One line of `--json`. `topic` and `offset` are taken and ignored, so that what was consumed can be produced."""

    value: Text
    key: Text = None
    headers: list[tuple[str, Text]] | dict[str, Text] | None = None
    timestamp: int | None = None
    partition: int | None = None
    topic: str | None = None
    offset: int | None = None


class InputRecord(msgspec.Struct, frozen=True):
    """A record to be produced; `plain` when it has nothing but key and value."""

    key: bytes | None
    value: bytes | None
    headers: Headers = ()
    timestamp: int | None = None
    partition: int | None = None

    @property
    def plain(self) -> bool:
        return not self.headers and self.timestamp is None and self.partition is None


_decode = msgspec.json.Decoder(JsonRecord).decode

_JSON_EXPECTED = 'expected an object such as {"key": "k", "value": "v"}'


def parse_json(line: bytes) -> InputRecord:
    r"""A record from its JSON object.

    >>> parse_json(b'{"key": null, "value": {"base64": "/w=="}, "headers": [["unit", "EUR"]]}')
    InputRecord(key=None, value=b'\xff', headers=(('unit', b'EUR'),), timestamp=None, partition=None)

    Raises:
        ValueError: it is not such an object; the sentence names the field.
    """
    if not line.strip():
        raise ValueError(f"found an empty line, {_JSON_EXPECTED}")
    try:
        record = _decode(line)
        given = record.headers
        headers = list(given.items()) if isinstance(given, dict) else given or []
        found = InputRecord(
            key=_bytes(record.key),
            value=_bytes(record.value),
            headers=tuple((name, _bytes(text)) for name, text in headers),
            timestamp=record.timestamp,
            partition=record.partition,
        )
    except msgspec.ValidationError as problem:
        raise ValueError(_readable(str(problem))) from None
    except (msgspec.DecodeError, UnicodeError, RecursionError) as problem:
        raise ValueError(f"is not JSON ({_readable(str(problem))}), {_JSON_EXPECTED}") from None
    for name, value in (("timestamp", found.timestamp), ("partition", found.partition)):
        low, high = INT64 if name == "timestamp" else (0, 2**31 - 1)
        if value is not None and not low <= value <= high:
            raise ValueError(f"{name}: found {value}, expected {low} to {high}")
    return found


def _bytes(text: Text) -> bytes | None:
    if isinstance(text, str):
        return text.encode()
    return None if text is None else text.base64


def _readable(problem: str) -> str:
    """msgspec's sentence in the words used elsewhere: `value: expected text, found a number`."""
    sentence, _, place = problem.partition(" - at ")
    for name, plain in _WORDS.items():
        sentence = sentence.replace(name, plain)
    if not sentence.startswith("JSON"):
        sentence = sentence[:1].lower() + sentence[1:]
    sentence = sentence.replace("`", "'")
    field = place.strip("`$.")
    return f"{field}: {sentence}" if field else sentence


_WORDS = {
    "Object missing required field `value`": "the field 'value' is missing; null is a tombstone",
    "Object missing required": "missing",
    "Object contains unknown": "unknown",
    "`str | object | null`": 'text, {"base64": …} or null',
    "`object | array | null`": "a list of [name, value] or null",
    ", got ": ", found ",
    "`str | null`": "text or null",
    "`int | null`": "a number or null",
    "`str`": "text",
    "`int`": "a number",
    "`float`": "a number with a fraction",
    "`bool`": "true or false",
    "`array`": "a list",
    "`object`": "an object",
    "`null`": "null",
}
