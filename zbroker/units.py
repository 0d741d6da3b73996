"""Sizes, durations and addresses as people write them: text in, integers out, and back.

The leaf that every part may use. Owns the units and their spelling. Never touches a file or a network: an
address is checked for its form, not for whether anybody answers there.

What is wrong with a text is a `UnitError`, one sentence that says what was found and what was expected.
Whatever the `format_` functions write, the `parse_` functions read back to the same number.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from typing import NamedTuple

LARGEST = 2**63 - 1
"""The largest size and duration: both are signed 64-bit integers wherever they are stored."""

_SIZES = {
    "TiB": 2**40,
    "GiB": 2**30,
    "MiB": 2**20,
    "KiB": 2**10,
    "TB": 10**12,
    "GB": 10**9,
    "MB": 10**6,
    "kB": 10**3,
    "B": 1,
}
_SIZE_BY_NAME = {unit.lower(): factor for unit, factor in _SIZES.items()}
_BINARY = [unit for unit in _SIZES if "i" in unit]

# `w` is read and never written: 7d says the same without a second thought.
_DURATIONS = {
    "w": 604_800_000,
    "d": 86_400_000,
    "h": 3_600_000,
    "m": 60_000,
    "s": 1000,
    "ms": 1,
}

_QUANTITY = re.compile(r"(?P<number>[0-9]+(?:\.[0-9]+)?)\s*(?P<unit>[A-Za-z]*)", re.ASCII)
_DURATION_MAX = 64
"""Characters of a duration: to find its parts takes the square of them."""
_DURATION_PARTS = re.compile(r"([0-9]+)([a-z]+)", re.ASCII)
_LABEL = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?", re.ASCII)
_PORT = re.compile(r"[0-9]{1,5}", re.ASCII)

_SIZE_EXPECTED = "expected a size such as 64KiB, 1GiB or a number of bytes"
_DURATION_EXPECTED = "expected a duration such as 250ms, 30s, 1h30m or 7d"
_ADDRESS_EXPECTED = "expected HOST:PORT, such as localhost:5550 or [::1]:5550"


class UnitError(ValueError):
    """A text is not the size, duration or address that it should be."""


def parse_size(text: str | int) -> int:
    """A size in bytes.

    `KiB`, `MiB`, `GiB` and `TiB` are powers of 1024; `kB`, `MB`, `GB` and `TB` are powers of 1000. Upper or
    lower case is the same. A number alone is bytes.

    >>> parse_size("64KiB"), parse_size("1.5 GiB"), parse_size("10MB"), parse_size(512)
    (65536, 1610612736, 10000000, 512)
    >>> parse_size("64K")
    Traceback (most recent call last):
    zbroker.units.UnitError: found '64K', expected a size such as 64KiB, 1GiB or a number of bytes
    """
    match = _QUANTITY.fullmatch(str(text).strip())
    if match is None:
        raise UnitError(f"found {_quoted(text)}, {_SIZE_EXPECTED}")
    factor = _SIZE_BY_NAME.get(match["unit"].lower() or "b")
    if factor is None:
        raise UnitError(f"found {_quoted(text)}, {_SIZE_EXPECTED}")
    return _whole(match["number"], factor, text, "bytes")


def format_size(size: int) -> str:
    """A size in bytes as the shortest exact text.

    >>> format_size(134217728), format_size(1536), format_size(1000), format_size(0)
    ('128MiB', '1536B', '1000B', '0B')
    """
    _check_range(size, "size")
    for unit in _BINARY:
        if size and size % _SIZES[unit] == 0:
            return f"{size // _SIZES[unit]}{unit}"
    return f"{size}B"


def parse_duration(text: str | int) -> int:
    """A duration in milliseconds.

    Units are `ms`, `s`, `m`, `h`, `d` and `w`. Several parts go from the largest unit to the smallest, each
    once. A number alone has no meaning, but for 0.

    >>> parse_duration("250ms"), parse_duration("1.5s"), parse_duration("1h30m"), parse_duration("7d")
    (250, 1500, 5400000, 604800000)
    >>> parse_duration("90")
    Traceback (most recent call last):
    zbroker.units.UnitError: found '90', which has no unit; expected a duration such as 250ms, 30s, 1h30m or 7d
    """
    stripped = str(text).strip()
    if len(stripped) > _DURATION_MAX:
        raise UnitError(f"found {_quoted(text)}, {_DURATION_EXPECTED}")
    match = _QUANTITY.fullmatch(stripped)
    if match is not None and not match["unit"]:
        if match["number"] == "0":
            return 0
        raise UnitError(f"found {_quoted(text)}, which has no unit; {_DURATION_EXPECTED}")
    if match is not None and match["unit"] in _DURATIONS:
        return _whole(match["number"], _DURATIONS[match["unit"]], text, "milliseconds")
    parts = _DURATION_PARTS.findall(stripped)
    units = [unit for _, unit in parts]
    if not parts or "".join(map("".join, parts)) != stripped or not set(units) <= set(_DURATIONS):
        raise UnitError(f"found {_quoted(text)}, {_DURATION_EXPECTED}")
    if units != [unit for unit in _DURATIONS if unit in units]:
        raise UnitError(
            f"found {_quoted(text)}, expected each unit once, from the largest to the smallest"
        )
    total = sum(_whole(number, _DURATIONS[unit], text, "milliseconds") for number, unit in parts)
    return _whole(str(total), 1, text, "milliseconds")


def format_duration(milliseconds: int) -> str:
    """A duration in milliseconds as exact text in one unit.

    >>> format_duration(604800000), format_duration(5400000), format_duration(1500), format_duration(0)
    ('7d', '90m', '1500ms', '0ms')
    """
    _check_range(milliseconds, "duration")
    for unit, factor in _DURATIONS.items():
        if unit != "w" and milliseconds and milliseconds % factor == 0:
            return f"{milliseconds // factor}{unit}"
    return f"{milliseconds}ms"


class Address(NamedTuple):
    """Where somebody listens: a host name or numeric address without brackets, and a TCP port."""

    host: str
    port: int

    def __str__(self) -> str:
        """As people write it: `localhost:5550`, `[::1]:5550`. ZeroMQ's endpoint is `tcp://` before it."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def plus(self, offset: int) -> Address:
        """The address some ports higher: a node's further sockets.

        >>> str(Address("::1", 5550).plus(1))
        '[::1]:5551'
        """
        return Address(self.host, self.port + offset)


def parse_host(text: str) -> str:
    """A host name or a numeric address, without brackets. Nothing is looked up.

    >>> parse_host("node2.local"), parse_host("192.168.1.11"), parse_host("[::1]")
    ('node2.local', '192.168.1.11', '::1')
    >>> parse_host("192.168.1.300")
    Traceback (most recent call last):
    zbroker.units.UnitError: found '192.168.1.300', expected a host name or an IP address
    """
    host = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    if ":" in host or host is not text:
        if _is_ip(host, 6):
            return host
    elif re.fullmatch(r"[0-9.]+", host):
        if _is_ip(host, 4):
            return host
    elif len(host) <= 253 and all(map(_LABEL.fullmatch, host.removesuffix(".").split("."))):
        return host
    raise UnitError(f"found {_quoted(text)}, expected a host name or an IP address")


def parse_address(text: str) -> Address:
    """A host and a port.

    >>> parse_address("localhost:5550"), parse_address("[::1]:5550")
    (Address(host='localhost', port=5550), Address(host='::1', port=5550))
    >>> parse_address("::1:5550")
    Traceback (most recent call last):
    zbroker.units.UnitError: found '::1:5550', expected an IPv6 address in brackets, such as [::1]:5550
    """
    stripped = text.strip()
    if "://" in stripped:
        raise UnitError(f"found {_quoted(text)}, {_ADDRESS_EXPECTED}, with nothing before it")
    host, colon, port = stripped.rpartition(":")
    if not (colon and host) or stripped.endswith("]"):
        raise UnitError(f"found {_quoted(text)}, {_ADDRESS_EXPECTED}")
    if ":" in host and not host.startswith("["):
        raise UnitError(
            f"found {_quoted(text)}, expected an IPv6 address in brackets, such as [::1]:5550"
        )
    if not _PORT.fullmatch(port) or not 1 <= int(port) <= 65535:
        raise UnitError(f"found port {_quoted(port)} in {_quoted(text)}, expected 1 to 65535")
    return Address(parse_host(host), int(port))


def parse_servers(servers: str | Iterable[str]) -> tuple[Address, ...]:
    """A list of servers: one text with commas, or several texts. A server named twice is kept once.

    >>> [str(server) for server in parse_servers("node1:5550, node2:5550")]
    ['node1:5550', 'node2:5550']
    >>> parse_servers("")
    Traceback (most recent call last):
    zbroker.units.UnitError: found no server, expected HOST:PORT, such as localhost:5550 or [::1]:5550
    """
    texts = [servers] if isinstance(servers, str) else list(servers)
    if not texts or texts == [""]:
        raise UnitError(f"found no server, {_ADDRESS_EXPECTED}")
    return tuple(dict.fromkeys(parse_address(part) for text in texts for part in text.split(",")))


def _whole(number: str, factor: int, text: str | int, unit: str) -> int:
    """`number` times `factor`, exactly: a float would round what people wrote."""
    whole, _, fraction = number.partition(".")
    if len(number) > 40:
        raise UnitError(f"found {_quoted(text)}, expected at most {LARGEST} {unit}")
    scale: int = 10 ** len(fraction)
    value, rest = divmod(int(whole + fraction) * factor, scale)
    if rest:
        raise UnitError(f"found {_quoted(text)}, expected a whole number of {unit}")
    if value > LARGEST:
        raise UnitError(f"found {_quoted(text)}, expected at most {LARGEST} {unit}")
    return value


def _check_range(value: int, what: str) -> None:
    if not 0 <= value <= LARGEST:
        raise UnitError(f"found {value}, expected a {what} between 0 and {LARGEST}")


def _is_ip(host: str, version: int) -> bool:
    try:
        return ipaddress.ip_address(host).version == version
    except ValueError:
        return False


def _quoted(text: str | int) -> str:
    """The text as found, cut where it is long."""
    shown = str(text)
    return repr(shown if len(shown) <= 60 else shown[:57] + "...")
