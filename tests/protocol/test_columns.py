"""Records by columns become the bytes that the same records become as rows."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zbroker.protocol.batch import HEADER_SIZE, check_ingest, encode_batch, finish_batch
from zbroker.protocol.columns import RUN_RECORDS, encode_columns

BYTES = st.none() | st.binary(max_size=40)
HEADERS = st.lists(st.tuples(st.text(max_size=8), BYTES), max_size=2).map(tuple)
DELTAS = st.integers(-(2**40), 2**40)


def rows_of(values: Any, keys: Any, headers: Any, runs: Any) -> list[Any]:
    """The same records as `encode_batch` takes them."""
    bounds = [*runs, (len(values), 0)]
    deltas = [
        delta for (first, delta), (end, _) in pairwise(bounds)
        for _ in range(min(end, len(values)) - min(first, len(values)))
    ]  # fmt: skip
    return [
        (delta, keys and keys[at], values[at], headers[at] if headers else ())
        for at, delta in enumerate(deltas)
    ]


def same(values: Any, keys: Any, headers: Any, runs: Any, *, same_length: bool) -> None:
    by_columns = encode_columns(
        values, keys, headers, runs, same_length=same_length, size_hint=len(values)
    )
    by_rows = encode_batch(rows_of(values, keys, headers, runs), base_timestamp=0, max_timestamp=0)
    assert by_columns[HEADER_SIZE:] == by_rows[HEADER_SIZE:]
    finished = finish_batch(by_columns, len(values), base_timestamp=0, max_timestamp=0)
    assert finished == by_rows
    check_ingest(finished, max_length=1 << 30)


@given(data=st.data())
def test_columns_of_any_kind(data: st.DataObject) -> None:
    values = data.draw(st.lists(BYTES, min_size=1, max_size=30))
    count = len(values)
    keys = data.draw(st.none() | st.lists(BYTES, min_size=count, max_size=count))
    headers = data.draw(st.none() | st.lists(HEADERS, min_size=count, max_size=count))
    firsts = sorted(data.draw(st.lists(st.integers(0, count + 2), max_size=5)))
    runs = [(first, data.draw(DELTAS)) for first in [0, *firsts]]
    same(values, keys, headers, runs, same_length=False)


@given(
    length=st.sampled_from((0, 1, 255, 256, 300)),
    parts=st.lists(st.tuples(st.integers(0, 40), DELTAS), min_size=1, max_size=4),
)
def test_values_of_one_length(length: int, parts: list[tuple[int, int]]) -> None:
    runs, count = [], 0
    for more, delta in parts:
        runs.append((count, delta))
        count += more + RUN_RECORDS
    values = [bytes((at % 256,)) * length for at in range(count)]
    same(values, None, None, runs, same_length=True)


@pytest.mark.parametrize("length", [65_535, 65_536])
def test_long_values_of_one_length(length: int) -> None:
    same([bytes(length)] * RUN_RECORDS, None, None, [(0, 0)], same_length=True)


@pytest.mark.parametrize("count", [RUN_RECORDS, 15, 16, 65_535, 65_536])
def test_every_size_of_array(count: int) -> None:
    same([b"x"] * count, None, None, [(0, 1000)], same_length=True)
