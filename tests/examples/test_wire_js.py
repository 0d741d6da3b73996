"""The batch of examples/node/wire.js against the oracle: a third implementation, both ways."""

from __future__ import annotations

import json
import random
from base64 import b64decode, b64encode
from collections.abc import Callable
from typing import Any
from zlib import crc32

import pytest
from protocol import oracle

from zbroker.client.partitioner import VECTORS, partition_of

ENCODE = """
import { encodeBatch, crc32c, partitionOf } from './wire.js'
const bytes = text => text === null ? null : Buffer.from(text, 'base64')
let input = ''
for await (const piece of process.stdin) input += piece
const { cases, keys } = JSON.parse(input)
const batches = cases.map(({ records, ...options }) => encodeBatch(records.map(
  ({ timestamp, key, value, headers }) => ({
    timestamp, key: bytes(key), value: bytes(value), headers: headers.map(([n, v]) => [n, bytes(v)])
  })), options).toString('base64'))
console.log(JSON.stringify({
  batches, crcs: keys.map(key => crc32c(bytes(key))), places: keys.map(key => partitionOf(bytes(key), 7))
}))
"""

DECODE = """
import { decodeBatches } from './wire.js'
const text = bytes => bytes && Buffer.from(bytes).toString('base64')
let input = ''
for await (const piece of process.stdin) input += piece
console.log(JSON.stringify(JSON.parse(input).map(chunk => {
  try {
    return [...decodeBatches(Buffer.from(chunk, 'base64'))].map(batch => ({
      ...batch, records: batch.records.map(({ offset, timestamp, key, value, headers }) =>
        [offset, timestamp, text(key), text(value), headers.map(([n, v]) => [n, text(v)])])
    }))
  } catch (error) { return error.message }
})))
"""

CHANCE = random.Random(7)
NOW = 1_790_000_000_000
PILE = [
    [0, None, b"no key", []],
    [-5, b"", b"empty key", [["h", b"1"], ["h", None], ["ü", b""]]],
    [2**40, b"k", None, []],
    [0, b"k", b"", []],
    [1, CHANCE.randbytes(300), CHANCE.randbytes(70_000), []],
    [2, b"repeats", b"again and again " * 20_000, []],
]


def text(data: bytes | None) -> str | None:
    return None if data is None else b64encode(data).decode()


def test_what_javascript_builds_the_oracle_parses(run_javascript: Callable[..., str]) -> None:
    records = [
        {"timestamp": NOW + delta, "key": text(key), "value": text(value),
         "headers": [[name, text(held)] for name, held in headers]}
        for delta, key, value, headers in PILE
    ]  # fmt: skip
    identity = {"producerId": 2**40, "epoch": 3, "sequence": 2**41}
    cases = [{"records": records, "codec": codec, **identity} for codec in (0, 1, 2)]
    cases.append({"records": records[:1]})
    keys = [key for key, _ in VECTORS] + [b"123456789"]
    given = json.dumps({"cases": cases, "keys": [text(key) for key in keys]})
    found = json.loads(run_javascript(ENCODE, given))
    for codec, batch in enumerate(map(b64decode, found["batches"][:3])):
        header, parsed = oracle.parse(batch)
        assert parsed == PILE
        assert header["attributes"] == codec
        assert (header["base_timestamp"], header["max_timestamp"]) == (NOW, NOW + 2**40)
        assert (header["producer_id"], header["producer_epoch"], header["base_sequence"]) == (
            2**40, 3, 2**41,
        )  # fmt: skip
        assert batch[60:88] == bytes(28)
    header, parsed = oracle.parse(b64decode(found["batches"][3]))
    assert (header["producer_id"], header["producer_epoch"], header["base_sequence"]) == (
        -1,
        -1,
        -1,
    )
    assert found["crcs"] == [oracle.crc32c(key) for key in keys]
    assert (
        found["places"]
        == [partition_of(key, 7) for key in keys]
        == [crc32(key) % 7 for key in keys]
    )


def test_what_the_oracle_builds_javascript_parses(run_javascript: Callable[..., str]) -> None:
    stamp: dict[str, int] = {"base_offset": 2**41, "leader_epoch": 6, "append_time": NOW + 9}
    given: dict[str, Any] = {"base_timestamp": NOW, "max_timestamp": NOW + 2**40}
    chunks = [oracle.build(PILE, codec=codec, stamp=stamp, **given) for codec in (0, 1, 2)]
    gap = oracle.build([None, PILE[0]], stamp=stamp | {"base_offset": 2**41 + 50}, **given)
    appended = oracle.build(PILE[:1], stamp=stamp | {"stamp_attributes": 1}, **given)
    control = oracle.build([None], attributes=0x10, stamp=stamp)
    critical = [oracle.build([None], attributes=bit, stamp=stamp) for bit in (3, 0x08, 0x20, 0x80)]
    damaged = bytearray(chunks[0])
    damaged[-1] ^= 1
    pile = [*chunks, chunks[0] + gap + gap[:-1], appended, control, *critical, bytes(damaged)]
    found = json.loads(run_javascript(DECODE, json.dumps([text(chunk) for chunk in pile])))
    expected = [
        [2**41 + index, NOW + delta, text(key), text(value), [[n, text(v)] for n, v in headers]]
        for index, (delta, key, value, headers) in enumerate(PILE)
    ]
    for batches in found[:3]:
        assert batches == [{"base": 2**41, "next": 2**41 + 6, "epoch": 6, "records": expected}]
    assert [batch["base"] for batch in found[3]] == [2**41, 2**41 + 50]
    assert found[3][1]["records"] == [[2**41 + 51, *expected[0][1:]]]
    assert found[4][0]["records"][0][1] == NOW + 9
    assert found[5] == [{"base": 2**41, "next": 2**41 + 1, "epoch": 6, "records": []}]
    assert all("critical" in said for said in found[6:10])
    assert "damaged" in found[10]


def test_javascript_refuses_every_flipped_bit(run_javascript: Callable[..., str]) -> None:
    batch = oracle.build([PILE[0]], stamp={"base_offset": 3})
    flipped = []
    for at in range(len(batch)):
        damaged = bytearray(batch)
        damaged[at] ^= 1 << at % 8
        flipped.append(text(bytes(damaged) + bytes(500)))
    found = json.loads(run_javascript(DECODE, json.dumps(flipped)))
    assert all(isinstance(said, str) for said in found)


@pytest.mark.parametrize("name", ["wire.js", "producer.js", "consumer.js"])
def test_an_example_reads_as_documentation(name: str, javascript: Any) -> None:
    lines = (javascript / name).read_text(encoding="utf-8").splitlines()
    assert lines[0].startswith("// ")
    assert max(map(len, lines)) <= 120
