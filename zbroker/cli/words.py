r"""What people write on a command line: separators with escapes, where to start, how long to wait.

Pure: the time is an argument. What is wrong with a text is a `ValueError` whose sentence says what was found and
what was expected.
"""

from __future__ import annotations

import re
from datetime import datetime
from typing import Literal, NamedTuple

from zbroker.units import UnitError, parse_duration

_ESCAPES = {"t": b"\t", "n": b"\n", "r": b"\r", "0": b"\0", "\\": b"\\"}
_ESCAPE = re.compile(r"\\(x[0-9A-Fa-f]{2}|.|$)", re.DOTALL)
_EXPECTED_ESCAPES = r"expected \t, \n, \r, \0, \xNN or \\ "

_WHOLE = re.compile(r"[0-9]{1,18}", re.ASCII)
_SECONDS = re.compile(r"[0-9]+(?:\.[0-9]+)?", re.ASCII)

START_EXPECTED = (
    "expected earliest, latest, an offset, a time such as 2024-05-31T12:00:00Z, "
    "or how long ago, such as -1h"
)


def unescape(text: str) -> bytes:
    r"""The bytes that a text with escapes stands for; what is no escape stands for its UTF-8.

    >>> unescape(r"\t"), unescape(r"a\x00\n"), unescape("; ")
    (b'\t', b'a\x00\n', b'; ')

    Raises:
        ValueError: a backslash that begins no escape.
    """
    parts: list[bytes] = []
    end = 0
    for match in _ESCAPE.finditer(text):
        parts.append(raw(text[end : match.start()]))
        parts.append(_escaped(match[1]))
        end = match.end()
    parts.append(raw(text[end:]))
    return b"".join(parts)


def raw(text: str) -> bytes:
    """An argument's bytes: those of the command line, where they were not UTF-8."""
    return text.encode("utf-8", "surrogateescape")


def _escaped(name: str) -> bytes:
    if len(name) == 3:
        return bytes([int(name[1:], 16)])
    found = _ESCAPES.get(name)
    if found is None:
        raise ValueError(f"found '\\{name}', {_EXPECTED_ESCAPES}".rstrip())
    return found


class Start(NamedTuple):
    """Where to begin in a partition: `at`, with an offset or a time in ms since the epoch where it needs one."""

    at: Literal["earliest", "latest", "offset", "time"]
    value: int = 0


def parse_start(text: str, now_ms: int) -> Start:
    """Where to start, as written after `--from`.

    A time without a zone is of this machine's zone. What lies before 1970 is 1970.

    >>> parse_start("latest", 0), parse_start("17", 0), parse_start("-1h", 3_600_500)
    (Start(at='latest', value=0), Start(at='offset', value=17), Start(at='time', value=500))
    >>> parse_start("1970-01-01T00:00:01Z", 0)
    Start(at='time', value=1000)

    Raises:
        ValueError: the text is none of these.
    """
    if text == "earliest":
        return Start("earliest")
    if text == "latest":
        return Start("latest")
    if _WHOLE.fullmatch(text):
        return Start("offset", int(text))
    if text.startswith("-") and text[1:2].isdigit():
        try:
            return Start("time", max(0, now_ms - parse_duration(text[1:])))
        except UnitError as problem:
            raise ValueError(f"{problem}; to start that long ago, write -1h") from None
    try:
        moment = datetime.fromisoformat(text)
        return Start("time", max(0, int(moment.astimezone().timestamp() * 1000)))
    except (ValueError, OverflowError, OSError):
        raise ValueError(f"found {text!r}, {START_EXPECTED}") from None


def parse_seconds(text: str) -> float:
    """How long to wait, in seconds: `10`, `2.5`, or a duration such as `500ms` or `1m`.

    >>> parse_seconds("10"), parse_seconds("2.5"), parse_seconds("500ms")
    (10.0, 2.5, 0.5)

    Raises:
        ValueError: it is no duration, or none at all.
    """
    seconds = float(text) if _SECONDS.fullmatch(text) else _duration(text)
    if not 0 < seconds <= 1e9:
        raise ValueError(f"found {text!r}, expected more than no time, such as 10 or 500ms")
    return seconds


def _duration(text: str) -> float:
    try:
        return parse_duration(text) / 1000
    except UnitError:
        raise ValueError(f"found {text!r}, expected seconds, such as 10, or 500ms or 1m") from None


def count(number: int, noun: str) -> str:
    """A number and what it counts.

    >>> count(1, "record"), count(12000, "record"), count(2, "batch")
    ('1 record', '12,000 records', '2 batches')
    """
    plural = "es" if noun.endswith("ch") else "s"
    return f"{number:,} {noun}{'' if number == 1 else plural}"


def approximate_size(size: float) -> str:
    """A size to three digits, for people.

    >>> approximate_size(512), approximate_size(1536), approximate_size(17_500_000)
    ('512 B', '1.50 KiB', '16.7 MiB')
    """
    if size < 1024:
        return f"{size:.0f} B"
    for unit in ("KiB", "MiB", "GiB", "TiB"):
        size /= 1024
        if size < 1000 or unit == "TiB":
            break
    digits = 2 if size < 10 else 1 if size < 100 else 0
    return f"{size:.{digits}f} {unit}"


def approximate_time(seconds: float) -> str:
    """A duration in its two largest units, for people.

    >>> approximate_time(0.4), approximate_time(75), approximate_time(93_784)
    ('0s', '1m 15s', '1d 2h')
    """
    left = int(seconds)
    parts: list[str] = []
    for unit, length in (("d", 86_400), ("h", 3600), ("m", 60), ("s", 1)):
        number, left = divmod(left, length)
        if number or parts:
            parts.append(f"{number}{unit}")
    return " ".join(part for part in parts[:2] if part[0] != "0") or "0s"


def approximate_rate(rate: float) -> str:
    """Records a second, for people.

    >>> approximate_rate(0), approximate_rate(0.25), approximate_rate(125000.4)
    ('0/s', '0.2/s', '125,000/s')
    """
    return f"{rate:.1f}/s" if 0 < rate < 10 else f"{rate:,.0f}/s"


def iso(milliseconds: int) -> str:
    """A time in ms since the epoch as ISO 8601 in UTC; the number itself where no calendar reaches.

    >>> iso(0), iso(-1), iso(2**62)
    ('1970-01-01T00:00:00.000Z', '1969-12-31T23:59:59.999Z', '4611686018427387904')
    """
    from datetime import UTC, timedelta

    try:
        moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=milliseconds)
    except OverflowError:
        return str(milliseconds)
    return moment.replace(tzinfo=None).isoformat(timespec="milliseconds") + "Z"
