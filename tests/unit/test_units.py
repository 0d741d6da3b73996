"""Sizes, durations and addresses: what is read, what is refused and how it is said, and that writing reads back."""

from __future__ import annotations

import ipaddress
import string
import time
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zbroker.units import (
    LARGEST,
    Address,
    UnitError,
    format_duration,
    format_size,
    parse_address,
    parse_duration,
    parse_host,
    parse_servers,
    parse_size,
)

NUMBERS = st.one_of(
    st.integers(0, LARGEST),
    st.builds(
        lambda n, unit: n * unit, st.integers(0, 4096), st.sampled_from([1000, 1 << 10, 1 << 30])
    ),
    st.builds(
        lambda n, unit: n * unit, st.integers(0, 4096), st.sampled_from([60_000, 86_400_000])
    ),
)
LABELS = st.text(string.ascii_letters + string.digits + "_", min_size=1, max_size=63).filter(
    lambda label: not label.isdigit()
)
HOSTS = st.one_of(
    st.builds(".".join, st.lists(LABELS, min_size=1, max_size=3)),
    st.builds(str, st.ip_addresses()),
)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("64KiB", 65_536),
        ("64 kib", 65_536),
        (" 1GiB ", 1 << 30),
        ("1TiB", 1 << 40),
        ("8MB", 8_000_000),
        ("8mb", 8_000_000),
        ("3kB", 3000),
        ("2GB", 2_000_000_000),
        ("1TB", 10**12),
        ("1.5MiB", 1_572_864),
        ("0.1GB", 100_000_000),
        ("17B", 17),
        (17, 17),
        (str(LARGEST), LARGEST),
    ],
)
def test_size(text: str | int, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "found '', expected a size such as 64KiB"),
        ("64K", "found '64K', expected a size"),
        ("64Kb it", "expected a size"),
        ("-1", "found '-1', expected a size"),
        (-1, "found '-1', expected a size"),
        ("1e3", "expected a size"),
        ("1_000", "expected a size"),
        ("1.", "expected a size"),
        (".5MiB", "expected a size"),
        ("٣MiB", "expected a size"),
        ("0.3B", "found '0.3B', expected a whole number of bytes"),
        ("1.0001KiB", "expected a whole number of bytes"),
        ("8388608TiB", f"expected at most {LARGEST} bytes"),
        ("9" * 5000, f"expected at most {LARGEST} bytes"),
    ],
)
def test_not_a_size(text: str | int, problem: str) -> None:
    with pytest.raises(UnitError) as caught:
        parse_size(text)
    assert problem in str(caught.value)
    assert len(str(caught.value)) < 200


@given(NUMBERS)
def test_a_size_reads_back(size: int) -> None:
    assert parse_size(format_size(size)) == size


@pytest.mark.parametrize(
    ("text", "milliseconds"),
    [
        ("0", 0),
        (0, 0),
        ("0s", 0),
        ("250ms", 250),
        ("1s", 1000),
        ("1.5s", 1500),
        ("30m", 1_800_000),
        ("1h30m", 5_400_000),
        ("1d12h", 129_600_000),
        ("7d", 604_800_000),
        ("1w", 604_800_000),
        ("1w2d3h4m5s6ms", 788_645_006),
        ("90m", 5_400_000),
    ],
)
def test_duration(text: str | int, milliseconds: int) -> None:
    assert parse_duration(text) == milliseconds


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "found '', expected a duration such as 250ms"),
        ("7", "found '7', which has no unit; expected a duration"),
        (7, "which has no unit"),
        ("1.5", "which has no unit"),
        ("7 days", "found '7 days', expected a duration"),
        ("1M", "expected a duration"),
        ("1y", "expected a duration"),
        ("-1s", "expected a duration"),
        ("forever", "expected a duration"),
        ("1h-30m", "expected a duration"),
        ("1h 30m", "expected a duration"),
        ("1.5h30m", "expected a duration"),
        ("30m1h", "each unit once, from the largest to the smallest"),
        ("1h1h", "each unit once"),
        ("0.5ms", "expected a whole number of milliseconds"),
        ("99999999999999w", f"expected at most {LARGEST} milliseconds"),
        (f"15250284452w{LARGEST}ms", f"expected at most {LARGEST} milliseconds"),
    ],
)
def test_not_a_duration(text: str | int, problem: str) -> None:
    with pytest.raises(UnitError) as caught:
        parse_duration(text)
    assert problem in str(caught.value)


@given(NUMBERS)
def test_a_duration_reads_back(milliseconds: int) -> None:
    assert parse_duration(format_duration(milliseconds)) == milliseconds


@pytest.mark.parametrize("value", [-1, LARGEST + 1])
def test_what_cannot_be_written(value: int) -> None:
    with pytest.raises(UnitError, match="expected a size between 0"):
        format_size(value)
    with pytest.raises(UnitError, match="expected a duration between 0"):
        format_duration(value)


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("localhost:5550", "localhost", 5550),
        ("192.168.1.11:1", "192.168.1.11", 1),
        ("node2.local:65535", "node2.local", 65535),
        ("node2.local.:5550", "node2.local.", 5550),
        ("my_host-1:5550", "my_host-1", 5550),
        ("[::1]:5550", "::1", 5550),
        ("[fe80::1%eth0]:5550", "fe80::1%eth0", 5550),
        (" a:5550 ", "a", 5550),
    ],
)
def test_address(text: str, host: str, port: int) -> None:
    assert parse_address(text) == Address(host, port)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "found '', expected HOST:PORT"),
        ("localhost", "found 'localhost', expected HOST:PORT"),
        (":5550", "found ':5550', expected HOST:PORT"),
        ("[::1]", "found '[::1]', expected HOST:PORT"),
        ("::1:5550", "expected an IPv6 address in brackets, such as [::1]:5550"),
        ("tcp://a:5550", "expected HOST:PORT, such as localhost:5550 or [::1]:5550, with nothing"),
        ("a:0", "found port '0' in 'a:0', expected 1 to 65535"),
        ("a:65536", "found port '65536'"),
        ("a:", "found port ''"),
        ("a:http", "found port 'http'"),
        ("a:５５５０", "found port '５５５０'"),
        ("a b:5550", "found 'a b', expected a host name or an IP address"),
        ("-a:5550", "found '-a', expected a host name"),
        ("a..b:5550", "found 'a..b', expected a host name"),
        ("*:5550", "found '*', expected a host name"),
        ("1.2.3:5550", "found '1.2.3', expected a host name or an IP address"),
        ("1.2.3.256:5550", "found '1.2.3.256', expected a host name or an IP address"),
        ("[1.2.3.4]:5550", "found '[1.2.3.4]', expected a host name or an IP address"),
        ("[host]:5550", "found '[host]', expected a host name or an IP address"),
        (f"{'a' * 64}:5550", "expected a host name or an IP address"),
    ],
)
def test_not_an_address(text: str, problem: str) -> None:
    with pytest.raises(UnitError) as caught:
        parse_address(text)
    assert problem in str(caught.value)


@given(HOSTS, st.integers(1, 65535))
def test_an_address_reads_back(host: str, port: int) -> None:
    address = Address(host, port)
    assert parse_address(str(address)) == address
    assert parse_host(host) == host


@given(st.ip_addresses(v=6))
def test_an_ipv6_address_is_written_in_brackets(ip: ipaddress.IPv6Address) -> None:
    assert str(Address(str(ip), 5550).plus(3)) == f"[{ip}]:5553"


@given(st.text())
def test_any_text_is_read_or_refused(text: str) -> None:
    for parse in (parse_size, parse_duration, parse_address, parse_host, parse_servers):
        try:
            parse(text)
        except UnitError as problem:
            assert str(problem).startswith("found ")


@given(st.lists(st.builds(Address, HOSTS, st.integers(1, 65535)), min_size=1, unique=True))
def test_servers_read_back(servers: list[Address]) -> None:
    texts = [str(server) for server in servers]
    assert parse_servers(texts) == tuple(servers)
    assert parse_servers(",".join(texts)) == tuple(servers)
    assert parse_servers(texts + texts) == tuple(servers)


@pytest.mark.parametrize(
    ("servers", "problem"),
    [
        ("", "found no server"),
        ([], "found no server"),
        ("a:5550,", "found '', expected HOST:PORT"),
        (["a:5550", "b"], "found 'b', expected HOST:PORT"),
    ],
)
def test_not_servers(servers: str | list[str], problem: str) -> None:
    with pytest.raises(UnitError, match=problem):
        parse_servers(servers)


@pytest.mark.parametrize("parse", [parse_size, parse_duration])
def test_a_text_as_long_as_a_message_is_refused_at_once(parse: Callable[[str], int]) -> None:
    before = time.thread_time()
    with pytest.raises(UnitError, match="expected"):
        parse("9" * 20_000 + "!")
    assert time.thread_time() - before < 0.5, "it takes seconds where every beginning is tried"
