"""Small frames that declare or hold much: refused with a code, in bounded memory; and a short fuzzing."""

from __future__ import annotations

import random
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgpack
import pytest
from protocol import oracle

from zbroker.errors import MalformedMessage, ZBrokerError
from zbroker.protocol import frames
from zbroker.protocol.batch import check_ingest, decode_records, iter_batches, read_header

MIB = 1 << 20
HUGE = [b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\x06\x00\x00\x00", b"\x00\xff\xff\xff"]


def peak_of(decode: Callable[[], Any]) -> int:
    """Most bytes that a refused decoding had allocated at once."""
    tracemalloc.start()
    try:
        with pytest.raises(ZBrokerError):
            decode()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("declared", HUGE, ids=bytes.hex)
@pytest.mark.parametrize("kind", [b"\xdd", b"\xdf", b"\xc6", b"\xdb", b"\xc9"], ids=bytes.hex)
@pytest.mark.parametrize(
    "before",
    [
        b"",
        b"\x82\xa2op\xa6status\xa1z",
        b"\x82\xa2op\xa5hello\xa8versions",
        b"\x82\xa2op\xa5hello\xabcredentials",
        b"\x82\xa2op\xa5hello\xabcredentials\x81\xa1a",
        b"\x82\xa2op\xa5error\xa7details\x81\xa1a",
        b"\x82\xa2op\xaccreate_topic\xa8settings",
        b"\x82\xa2op\xa8metadata\xa6topics",
        b"\x82\xa2op\xa7produce\xa5topic",
    ],
    ids=lambda before: before.decode("latin-1")[1:] or "alone",
)
def test_a_head_that_declares_gigabytes(before: bytes, kind: bytes, declared: bytes) -> None:
    head = before + kind + declared + bytes(30)
    for decode in (frames.decode_request, frames.decode_reply, frames.decode_push):
        assert peak_of(lambda decode=decode: decode(head)) < 100_000
    assert frames.request_id(head) == 0


@pytest.mark.parametrize("nest", [b"\x91", b"\x81\xa1a", b"\xdd\x00\x00\x00\x01", b"\x81"])
@pytest.mark.parametrize(
    "before", [b"", b"\x82\xa2op\xa6status\xa1z", b"\x82\xa2op\xa5hello\xabcredentials\x81\xa1a"]
)
def test_a_nesting_bomb_in_a_head(before: bytes, nest: bytes) -> None:
    head = before + nest * ((frames.HEAD_MAX - 100) // len(nest))
    for decode in (frames.decode_request, frames.decode_reply, frames.decode_push):
        assert peak_of(lambda decode=decode: decode(head)) < MIB
    assert frames.request_id(head) == 0
    assert frames.request_op(head) is None or before


def test_a_head_that_is_too_large_is_not_looked_into() -> None:
    count = 200_000
    head = b"\x81\xa2id\xdd" + count.to_bytes(4, "big") + b"\x90" * count
    tracemalloc.start()
    try:
        assert frames.request_id(head) == 0
        assert tracemalloc.get_traced_memory()[1] < 10_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "head", [b"\x82\xa2op\xa6status\xa2id\x81\x80\xc0", b"\x82\xa2op\xa5hello\xabcredentials\x81\x80\xc0"]
)  # fmt: skip
def test_keys_that_cannot_be_keys(head: bytes) -> None:
    with pytest.raises(MalformedMessage):
        frames.decode_request(head)
    assert frames.request_id(head) == 0


def forged(payload: bytes, **fields: Any) -> bytes:
    header = oracle.parse(oracle.build([None]))[0] | {"payload_length": len(payload)}
    return oracle.seal(header | fields, payload, stamped=True)


def read(batch: bytes) -> None:
    for at, header in iter_batches(batch):
        decode_records(batch, at, header)


@pytest.mark.parametrize("declared", HUGE, ids=bytes.hex)
@pytest.mark.parametrize(
    "payload", [b"\xdd", b"\x91\xc6", b"\x91\x94\x00\xc6", b"\x91\x94\x00\xc0\xc0\xdd", b"\x91\xdd"], ids=bytes.hex
)  # fmt: skip
def test_a_payload_that_declares_gigabytes(payload: bytes, declared: bytes) -> None:
    payload += declared + bytes(8)
    for span in (1, int.from_bytes(declared) & 0x7FFFFFFF):
        batch = forged(payload, span=span, uncompressed_length=len(payload))
        assert peak_of(lambda batch=batch: read(batch)) < 100_000


@pytest.mark.parametrize("codec", [0, 1, 2])
@pytest.mark.parametrize("length", [2**20, 2**30, 2**31, 2**32 - 1])
def test_a_batch_that_declares_more_than_it_holds(codec: int, length: int) -> None:
    payload = oracle.compress(codec, msgpack.packb([None]))
    batch = forged(payload, attributes=codec, uncompressed_length=length)
    assert peak_of(lambda: read(batch)) < 300_000
    assert peak_of(lambda: check_ingest(batch, max_length=4 * MIB)) < 300_000


@pytest.mark.parametrize("codec", [1, 2])
def test_a_bomb_that_declares_little_and_holds_much(codec: int) -> None:
    payload = oracle.compress(codec, b"\xdd\x04\x00\x00\x00" + bytes(64 * MIB))
    assert len(payload) < 300_000
    batch = forged(payload, attributes=codec, uncompressed_length=1000, span=1000)
    assert peak_of(lambda: read(batch)) < MIB
    assert peak_of(lambda: check_ingest(batch, max_length=4 * MIB)) < MIB


@pytest.mark.parametrize("codec", [1, 2])
def test_a_bomb_within_a_bomb(codec: int) -> None:
    inner = oracle.compress(codec, bytes(64 * MIB))
    payload = oracle.compress(codec, inner)
    batch = forged(payload, attributes=codec, uncompressed_length=len(inner), span=9)
    assert peak_of(lambda: check_ingest(batch, max_length=4 * MIB)) < 2 * MIB


def test_an_honest_bomb_stops_at_the_limit() -> None:
    """What says truly that it holds 64 MiB is refused before it is opened."""
    for codec in (1, 2):
        payload = oracle.compress(codec, b"\xdd\x04\x00\x00\x00" + b"\xc0" * (64 * MIB))
        batch = forged(payload, attributes=codec, uncompressed_length=64 * MIB + 5, span=64 * MIB)
        assert peak_of(lambda batch=batch: check_ingest(batch, max_length=4 * MIB)) < MIB
        header = read_header(batch)
        assert peak_of(lambda b=batch, h=header: decode_records(b, 0, h, max_length=MIB)) < MIB


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 20_260, None])
def test_fuzz(seed: int | None) -> None:
    """A few seconds of hostile frames, in a process of limited memory; the failure says how to replay."""
    pytest.importorskip("resource")
    chosen = random.SystemRandom().randrange(2**32) if seed is None else seed
    script = Path(__file__).with_name("fuzz.py")
    done = subprocess.run(
        [sys.executable, script, str(chosen), "4"], capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, f"seed {chosen}\n{done.stdout}{done.stderr}"
