"""Hostile frames, made by mutation, against everything that decodes: a script with a limit on its memory.

Owns the mutations and the promise: nothing but a `ZBrokerError` comes out, no decoder runs out of
memory, and the process stays small. `python tests/protocol/fuzz.py SEED SECONDS [CASES]` prints how
many cases it tried; a case that breaks the promise ends it with status 1 and the line that replays it.
"""

from __future__ import annotations

import random
import resource
import struct
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import msgpack
from protocol import oracle

from zbroker.errors import ZBrokerError
from zbroker.protocol import frames
from zbroker.protocol.batch import check_ingest, decode_records, iter_batches, read_header

MAX_BATCH = 1 << 20
ROOM = 192 << 20
"""Bytes of address space beyond what the process has at its start."""
GROWTH_MAX = 64 << 20
"""Bytes by which its resident memory may grow."""

HOSTILE = [
    b"\xdd\xff\xff\xff\xff", b"\xdc\xff\xff", b"\xdf\xff\xff\xff\xff", b"\xde\xff\xff",
    b"\xc6\xff\xff\xff\xff", b"\xdb\xff\xff\xff\xff", b"\xc9\xff\xff\xff\xff\x01", b"\xc5\xff\xff",
    b"\x91" * 3000, b"\x81\xa1a" * 1500, b"\x81" * 1500, b"\xa2\xff\xfe", b"\xc1", b"\xd6\xff\xff\xff\xff\xff",
    b"\xcb" + struct.pack(">d", float("nan")), b"\xcb" + struct.pack(">d", float("inf")),
    b"\xcf" + b"\xff" * 8, b"\xd3\x80" + bytes(7), b"\xc7\x0c\xff" + b"\xff" * 12, b"\xd4\x01\x00",
    b"", b"\x00", b"\xff" * 9, b"\xc0", b"\x28\xb5\x2f\xfd", b"\x04\x22\x4d\x18", b"ZBAT",
]  # fmt: skip
LENGTHS = [0, 1, 2, 88, 127, 2**16, 2**20, 2**20 + 1, 2**31 - 1, 2**31, 2**32 - 1]


def heads() -> list[bytes]:
    """A message of every kind that matters, as another library packs it."""
    messages: list[dict[str, Any]] = [
        {"op": "hello", "id": 1, "versions": [1], "credentials": {"a": [1, {"b": None}]}},
        {"op": "metadata", "id": 2, "topics": ["sales", "t"]},
        {"op": "produce", "id": 3, "topic": "sales", "partition": 2, "acks": "all"},
        {"op": "fetch", "id": 4, "topic_id": "0" * 32, "offset": 2**40, "epoch": 3},
        {"op": "create_topic", "id": 5, "name": "sales", "settings": {"partitions": 4, "fsync": "never"}},
        {"op": "error", "id": 6, "code": "not_leader", "message": "no", "details": {"first": 4}},
        {"op": "stats", "id": 7, "partitions": [{"partition": 1, "damaged": [[1, 2]]}]},
        {"v": 1, "topic_id": "0" * 32, "partition": 0, "epoch": 3, "high_watermark": 9},
        {"op": "metadata", "nodes": [{"name": "n", "host": "h", "port": 5550}],
         "topics": [{"name": "t", "partitions": [{"partition": 0, "isr": ["n"]}]}]},
    ]  # fmt: skip
    return [msgpack.packb(message, use_bin_type=True) for message in messages]


def payloads() -> list[bytes]:
    """Payloads, good ones and bombs."""
    record = [5, b"key", b"value" * 9, [["h", b"1"], ["h", None]]]
    good = [[record] * 3, [None, record], [[0, None, None, []]] * 20]
    return [msgpack.packb(records, use_bin_type=True) for records in good] + [
        b"\xdd\x00\x10\x00\x00" + b"\xc0" * 2**20,
        b"\x91\x94\x00\xc0\xc6\x00\x20\x00\x00" + bytes(2**21),
    ]


def mutate(chance: random.Random, data: bytes, others: list[bytes]) -> bytes:
    """A few changes: bits, cuts, splices, and the worst that MessagePack can say."""
    out = bytearray(data)
    for _ in range(chance.choice((0, 1, 1, 1, 2, 4))):
        at = chance.randint(0, len(out))
        match chance.randrange(7):
            case 0 if out:
                out[at % len(out)] ^= 1 << chance.randrange(8)
            case 1:
                del out[at:]
            case 2:
                del out[at : at + chance.randint(1, 9)]
            case 3:
                out[at:at] = chance.choice(HOSTILE)
            case 4:
                token = chance.choice(HOSTILE)
                out[at : at + len(token)] = token
            case 5:
                out[at:] = chance.choice(others)[chance.randrange(40) :]
            case _:
                out[at : at + 4] = struct.pack(chance.choice("<>") + "I", chance.choice(LENGTHS))
    return bytes(out)


def batch(chance: random.Random, plain: list[bytes]) -> bytes:
    """A batch with a mutated payload, a mutated header and, most times, CRCs that fit."""
    codec = chance.choice((0, 1, 2))
    body = chance.choice(plain)
    length = len(body)
    if chance.random() < 0.5 and length < 10_000:
        body = mutate(chance, body, plain[:3])
        length = len(body)
    payload = oracle.compress(codec, body)
    if chance.random() < 0.3 and len(payload) < 10_000:
        payload = mutate(chance, payload, plain[:3])
    header: dict[str, Any] = dict.fromkeys((name for name, _, _ in oracle.FIELDS), 0) | {
        "magic": b"ZBAT", "version": 1, "attributes": codec, "payload_length": len(payload),
        "uncompressed_length": length, "producer_id": -1, "base_sequence": -1, "producer_epoch": -1,
        "span": chance.choice((1, 2, 3, 20, 2**20)),
    }  # fmt: skip
    for _ in range(chance.choice((0, 0, 1, 2))):
        name, _, kind = chance.choice(oracle.FIELDS[1:])
        bits = 8 * struct.calcsize(kind)
        value = chance.choice((*LENGTHS, 2**63 - 1)) & (2**bits - 1)
        header[name] = value - 2**bits if kind in "qi" and value >> (bits - 1) else value
    if len(payload) > 10_000:  # a CRC in pure Python takes its time
        payload = payload[: chance.randrange(2000)] if chance.random() < 0.9 else payload
    if chance.random() < 0.1:
        return mutate(chance, oracle.pack(header) + payload, plain[:3])
    return oracle.seal(header, payload, stamped=True)


def read_all(data: bytes) -> None:
    """What a reader does with a chunk: step over what is malformed inside."""
    for at, header in iter_batches(data):
        try:
            decode_records(data, at, header, max_length=MAX_BATCH)
        except ZBrokerError:
            continue


def take(parts: list[bytes]) -> None:
    """What a node does with a message."""
    incoming = frames.split(parts)
    frames.request_id(incoming.head)
    frames.request_op(incoming.head)
    frames.decode_request(incoming.head)
    for body in incoming.bodies:
        check_ingest(body, max_length=MAX_BATCH)


def cases(seed: int) -> Iterator[tuple[Callable[..., Any], Any]]:
    """Endlessly: a decoder and something for it."""
    chance = random.Random(seed)
    messages, plain = heads(), payloads()
    decoders = (
        frames.decode_request,
        frames.decode_reply,
        frames.decode_push,
        frames.decode_change,
    )
    while True:
        head = mutate(chance, chance.choice(messages), messages)
        yield chance.choice(decoders), head
        data = batch(chance, plain)
        yield lambda data=data: check_ingest(data, max_length=MAX_BATCH), None
        yield read_all, data + (batch(chance, plain) if chance.random() < 0.2 else b"")
        if len(data) >= 88:
            yield (
                lambda data=data: decode_records(data, 0, read_header(data), max_length=MAX_BATCH),
                None,
            )
        parts = [chance.choice((b"", head, data, b"\xff")) for _ in range(chance.randrange(6))]
        yield take, parts


def ran_out(error: BaseException | None) -> bool:
    """Whether running out of memory stands behind an error."""
    while error is not None:
        if isinstance(error, MemoryError):
            return True
        error = error.__context__
    return False


def main(seed: int, seconds: float, count: int | None) -> int:
    for codec in (0, 1, 2):  # load the codecs before memory is limited
        read_all(oracle.build([None], codec=codec, stamp={}))
    if sys.platform == "linux":
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + ROOM,) * 2)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    end = time.monotonic() + seconds
    tried = refused = 0
    for decoder, given in cases(seed):
        tried += 1
        try:
            decoder() if given is None else decoder(given)
        except ZBrokerError as error:
            refused += 1
            broken = ran_out(error)
        except BaseException as error:
            print(f"{type(error).__name__}: {error}")
            broken = True
        else:
            broken = False
        if broken:
            print(f"case {tried} broke: python tests/protocol/fuzz.py {seed} 600 {tried}")
            return 1
        if tried == count or (count is None and time.monotonic() >= end):
            break
    scale = 1 if sys.platform == "darwin" else 1024
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * scale
    print(f"{tried} cases, {refused} refused, {grown >> 20} MiB more")
    return int(grown > GROWTH_MAX)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3]) if sys.argv[3:] else None))
