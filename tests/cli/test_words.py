"""What people write on a command line."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zbroker.cli.words import (
    Start,
    approximate_rate,
    approximate_size,
    approximate_time,
    count,
    iso,
    parse_seconds,
    parse_start,
    unescape,
)

HOUR = 3_600_000
NOW = 1_700_000_000_000


@pytest.mark.parametrize(
    ("text", "data"),
    [
        (r"\t", b"\t"),
        (r"\n\r\0", b"\n\r\0"),
        (r"\x00\xfF", b"\x00\xff"),
        (r"a\\tb", b"a\\tb"),
        ("=>", b"=>"),
        ("é", "é".encode()),
        ("\udcff", b"\xff"),
        ("", b""),
        (r"\x41B", b"AB"),
    ],
)
def test_escapes(text: str, data: bytes) -> None:
    assert unescape(text) == data


@pytest.mark.parametrize("text", ["\\", r"\q", r"\x", r"\x4", r"\xg0", "a\\"])
def test_a_backslash_that_means_nothing(text: str) -> None:
    with pytest.raises(ValueError, match=r"expected \\t, \\n"):
        unescape(text)


@given(st.binary())
def test_every_byte_can_be_written(data: bytes) -> None:
    assert unescape("".join(f"\\x{byte:02x}" for byte in data)) == data


@pytest.mark.parametrize(
    ("text", "start"),
    [
        ("earliest", Start("earliest")),
        ("latest", Start("latest")),
        ("0", Start("offset", 0)),
        ("123456789012345678", Start("offset", 123456789012345678)),
        ("-1h", Start("time", NOW - HOUR)),
        ("-1h30m", Start("time", NOW - HOUR * 3 // 2)),
        ("-0", Start("time", NOW)),
        ("-100000d", Start("time", 0)),
        ("2023-11-14T22:13:20Z", Start("time", NOW)),
        ("2023-11-14T22:13:20.123+00:00", Start("time", NOW + 123)),
        ("2023-11-14 23:13:20+01:00", Start("time", NOW)),
        ("1969-12-31T00:00:00Z", Start("time", 0)),
    ],
)
def test_where_to_start(text: str, start: Start) -> None:
    assert parse_start(text, NOW) == start


def test_a_day_is_of_this_machines_zone() -> None:
    assert parse_start("2023-11-14", NOW).value % 60_000 == 0


@pytest.mark.parametrize("text", ["", "soon", "-", "-1", "1.5", "+3", "-1parsec", "2023-13-01"])
def test_no_place_to_start(text: str) -> None:
    with pytest.raises(ValueError, match="expected"):
        parse_start(text, NOW)


@pytest.mark.parametrize(
    ("text", "seconds"), [("10", 10), ("0.25", 0.25), ("500ms", 0.5), ("1m", 60)]
)
def test_seconds(text: str, seconds: float) -> None:
    assert parse_seconds(text) == seconds


@pytest.mark.parametrize("text", ["0", "-1", "x", "", "nan", "inf", "1e3", "10 parsec", "0ms"])
def test_no_seconds(text: str) -> None:
    with pytest.raises(ValueError, match="expected"):
        parse_seconds(text)


def test_numbers_for_people() -> None:
    assert count(1, "record") == "1 record"
    assert count(1500, "record") == "1,500 records"
    assert [approximate_size(size) for size in (0, 1023, 1024, 1 << 20, 1023 << 20, 1 << 50)] == [
        "0 B",
        "1023 B",
        "1.00 KiB",
        "1.00 MiB",
        "1.00 GiB",
        "1024 TiB",
    ]
    assert [approximate_time(seconds) for seconds in (0, 59.9, 60, 3600, 90_061)] == [
        "0s",
        "59s",
        "1m",
        "1h",
        "1d 1h",
    ]
    assert approximate_rate(9.96) == "10.0/s"


@given(st.integers(-(2**63), 2**63 - 1))
def test_every_timestamp_has_a_form(milliseconds: int) -> None:
    text = iso(milliseconds)
    assert text.endswith("Z") or text == str(milliseconds)
