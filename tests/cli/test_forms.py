"""Bytes to records and records to bytes: what `produce` reads and `consume` writes, and that the two agree."""

from __future__ import annotations

import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from zbroker.cli import writing
from zbroker.cli.reading import InputRecord, Splitter, parse_json, split_keys
from zbroker.cli.visible import printable, printable_json, visible
from zbroker.client.records import Record

HUGE = 1 << 30
NAMES = st.text(st.characters(codec="utf-8"), max_size=10)
BYTES = st.one_of(st.binary(max_size=40), st.text(st.characters(codec="utf-8")).map(str.encode))
NULLABLE = st.one_of(st.none(), BYTES)
RECORDS = st.builds(
    Record,
    topic=st.just("sales"),
    partition=st.integers(0, 2**31 - 1),
    offset=st.integers(0, 2**63 - 1),
    timestamp=st.integers(-(2**63), 2**63 - 1),
    key=NULLABLE,
    value=NULLABLE,
    headers=st.lists(st.tuples(NAMES, NULLABLE), max_size=4).map(tuple),
)


def record(value: bytes | None = b"v", key: bytes | None = None, **more: object) -> Record:
    facts = {"topic": "sales", "partition": 0, "offset": 3, "timestamp": 1000, "headers": ()}
    return Record(key=key, value=value, **{**facts, **more})  # type: ignore[arg-type]


# Where records end ---


def split(
    data: bytes, sizes: list[int], terminator: bytes = b"\n", limit: int = HUGE
) -> list[bytes]:
    splitter = Splitter(terminator, limit)
    records: list[bytes] = []
    while data:
        size = sizes.pop() if sizes else len(data)
        records += splitter.feed(data[:size])
        data = data[size:]
    return records + splitter.finish()


@pytest.mark.parametrize(
    ("data", "records"),
    [
        (b"", []),
        (b"\n", [b""]),
        (b"a", [b"a"]),
        (b"a\n", [b"a"]),
        (b"a\n\n", [b"a", b""]),
        (b"\na", [b"", b"a"]),
        (b"a\r\nb\0\xff\n", [b"a\r", b"b\0\xff"]),
    ],
)
def test_records_end_at_terminators(data: bytes, records: list[bytes]) -> None:
    for size in (1, 2, 3, 100):
        assert split(data, [size] * 10) == records


@given(
    st.lists(st.binary(max_size=5).map(lambda data: data.replace(b"\0", b"\n"))),
    st.booleans(),
    st.lists(st.integers(1, 7)),
)
def test_whatever_the_chunks(records: list[bytes], closed: bool, sizes: list[int]) -> None:
    data = b"".join(record + b"\0" for record in records)
    if not closed and records and records[-1]:
        data = data[:-1]
    assert split(data, sizes, b"\0") == records


def test_a_record_without_end_takes_bounded_memory() -> None:
    splitter = Splitter(b"\n", 10)
    for _ in range(100):
        assert splitter.feed(b"x" * 8) == []
    assert splitter.feed(b"x\nab\n" + b"y" * 50 + b"\nc") == [b"x" * 11, b"ab", b"y" * 11]
    assert splitter.finish() == [b"c"]


def test_keys_end_at_the_first_separator() -> None:
    assert split_keys([b"k--a--b", b"--v", b"k--"], b"--") == (
        [b"k", b"", b"k"],
        [b"a--b", b"v", b""],
        [],
    )
    assert split_keys([b"a-b", b"k--v", b""], b"--") == ([b"k"], [b"v"], [0, 2])


@given(st.lists(st.tuples(st.binary(), st.binary())))
def test_keys_and_values_come_back_through_text(pairs: list[tuple[bytes, bytes]]) -> None:
    clean = [
        (key.replace(b"\0", b"").replace(b"\t", b""), value.replace(b"\0", b""))
        for key, value in pairs
    ]
    write = writing.lines(b"\t", b"\0", terminal=False)
    data = write([record(value, key) for key, value in clean])
    keys, values, bad = split_keys(split(data, [], b"\0"), b"\t")
    assert list(zip(keys, values, strict=True)) == clean
    assert not bad


# JSON ---


@given(RECORDS, st.booleans())
@example(record(None, None), False)
@example(record(b"\xef\xbb\xbf\0\n\xe2\x80\xa8", b""), True)
def test_json_brings_back_every_byte(one: Record, terminal: bool) -> None:
    data = writing.json_lines(terminal=terminal)([one])
    lines = split(data, [])
    assert len(lines) == 1
    back = parse_json(lines[0])
    assert back == InputRecord(one.key, one.value, one.headers, one.timestamp, one.partition)
    plain = json.loads(lines[0])
    assert (plain["topic"], plain["offset"]) == (one.topic, one.offset)


@given(st.binary(max_size=60))
def test_no_line_breaks_the_json_reader(line: bytes) -> None:
    try:
        parse_json(line)
    except ValueError as problem:
        assert str(problem)


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ('{"value": "v"}', InputRecord(None, b"v")),
        ('{"value": null, "key": ""}', InputRecord(b"", None)),
        ('{"value": "", "headers": {"a": "b"}}', InputRecord(None, b"", (("a", b"b"),))),
        ('{"value": "v", "headers": [["a", null]]}', InputRecord(None, b"v", (("a", None),))),
        ('{"value": {"base64": "/w=="}, "timestamp": -5}', InputRecord(None, b"\xff", (), -5)),
        ('{"value": "v", "partition": 3}', InputRecord(None, b"v", (), None, 3)),
        ('  {"value":"\\u00e9"}\r', InputRecord(None, "é".encode())),
    ],
)
def test_json_by_hand(line: str, found: InputRecord) -> None:
    assert parse_json(line.encode()) == found


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("", "empty line"),
        ("hello", "is not JSON (JSON is malformed"),
        ("[1]", "expected an object, found a list"),
        ('{"value": "v"', "is not JSON"),
        ("{}", "the field 'value' is missing"),
        ('{"key": "k"}', "the field 'value' is missing"),
        ('{"value": 7}', 'value: expected text, {"base64": …} or null, found a number'),
        ('{"value": "v", "key": [1]}', "key: expected text"),
        ('{"value": "v", "partition": "0"}', "partition: expected a number or null, found text"),
        ('{"value": "v", "partition": -1}', "partition: found -1, expected 0 to"),
        ('{"value": "v", "timestamp": 9223372036854775808}', "timestamp: "),
        ('{"value": "v", "headers": [["a"]]}', "headers"),
        ('{"value": {"base64": "?"}}', "value.base64: "),
        ('{"value": {"base65": ""}}', "value: unknown field 'base65'"),
        ('{"value": "v", "colour": 1}', "unknown field 'colour'"),
        ('{"value": "\\ud800"}', "is not JSON"),
        ('{"value": ' + "[" * 100_000, "value: expected text"),
        ('{"x": ' + "[" * 100_000, "unknown field 'x'"),
        ("[" * 100_000, "expected an object, found a list"),
    ],
)
def test_broken_json_says_where(line: str, problem: str) -> None:
    with pytest.raises(ValueError) as failure:
        parse_json(line.encode())
    assert problem in str(failure.value)
    assert "`" not in str(failure.value)


# Forms ---


def test_values_stand_alone() -> None:
    write = writing.lines(None, b"\n", terminal=False)
    assert write([]) == b""
    assert write([record(b"a\xff\x1b"), record(None), record(b"")]) == b"a\xff\x1b\n\n\n"
    assert writing.lines(None, b"\0", terminal=False)([record(b"a\nb")]) == b"a\nb\0"


def test_a_terminal_gets_no_control_bytes() -> None:
    one = record(b"a\xff\x1b[2J\n\xc2\x9b\xe2\x80\xae", b"k\x07")
    assert (
        writing.lines(b"\t", b"\n", terminal=True)([one])
        == b"k\\x07\ta\\xff\\x1b[2J\\n\\x9b\\u202e\n"
    )
    assert writing.lines(None, b"\0", terminal=True)([record(b"a")]) == b"a\\0\n"
    assert writing.formatted("%k", terminal=True)([one]) == b"k\\x07"


@given(st.binary())
def test_what_is_visible_is_harmless(data: bytes) -> None:
    shown = visible(data).decode()
    assert printable(shown) == shown
    assert not any(ord(letter) < 32 or 127 <= ord(letter) < 160 for letter in shown)


@given(st.text())
def test_json_stays_the_same_json(text: str) -> None:
    line = json.dumps(text, ensure_ascii=False).encode("utf-8", "replace")
    assert json.loads(printable_json(line)) == json.loads(line)


def test_formats() -> None:
    one = record(b"v%b", b"k", headers=(("a", b"1"), ("b", None), ("a", b"")))
    write = writing.formatted(r"%t %p %o %T %k %v %h\n", terminal=False)
    assert write([one, one]) == b"sales 0 3 1000 k v%b a=1,b,a=\n" * 2
    assert writing.formatted(r"100%% \x41%%d %v", terminal=False)([one]) == b"100% A%d v%b"
    assert writing.formatted("[%k|%v|%h]", terminal=False)([record(None)]) == b"[||]"
    assert writing.formatted("", terminal=False)([one]) == b""


@pytest.mark.parametrize("form", ["%", "%q", "a%", "%5d", r"\q%t"])
def test_formats_that_mean_nothing(form: str) -> None:
    with pytest.raises(ValueError, match="expected"):
        writing.formatted(form, terminal=False)


@given(RECORDS)
def test_a_format_keeps_bytes(one: Record) -> None:
    write = writing.formatted(r"%k\xff%v", terminal=False)
    assert write([one]) == (one.key or b"") + b"\xff" + (one.value or b"")
