"""docs/protocol.md: its tables are what the code says, and every byte in it decodes and encodes again."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import msgpack
import pytest
from protocol import oracle

from zbroker.errors import BY_CODE, ZBrokerError
from zbroker.protocol import frames
from zbroker.protocol.batch import decode_records, encode_batch, iter_batches, read_header

DOCS = Path(__file__).parents[2] / "docs"
TEXT = (DOCS / "protocol.md").read_text(encoding="utf-8")
ROW = re.compile(r"([0-9a-f]{4})  ((?:[0-9a-f]{2} ?)+) {2,}(.*)")


@pytest.fixture(scope="module")
def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate", DOCS / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def undump(block: str) -> bytes:
    """The bytes of a hex block; addresses and readable columns must fit them."""
    data = b""
    for line in block.splitlines():
        found = ROW.fullmatch(line)
        assert found, line
        assert int(found[1], 16) == len(data)
        piece = bytes.fromhex(found[2])
        assert found[3] == "".join(chr(byte) if 32 <= byte < 127 else "." for byte in piece)
        data += piece
    return data


EXAMPLES = [
    (found[1], int(found[2].replace(",", "")), found[3], undump(found[4]))
    for found in re.finditer(
        r"^([^\n]+), (\d+) bytes:\n\n(?:```json\n([^\n]*)\n```\n\n)?```hex\n(.*?)\n```",
        TEXT,
        re.M | re.S,
    )
]
HEADS = [pytest.param(data, said, id=title) for title, _, said, data in EXAMPLES if said]
BATCHES = [pytest.param(data, id=title) for title, _, said, data in EXAMPLES if not said]


def test_the_generated_parts_are_what_the_code_says(generator: ModuleType) -> None:
    assert generator.render(TEXT) == TEXT, "run python docs/generate.py"
    names = set(re.findall(r"<!-- generated: (\w+) -->", TEXT))
    assert names == {
        "layout", "vectors", "commands", "structures", "pushed", "errors", "limits", "examples", "batches",
    }  # fmt: skip
    operations = (DOCS / "operations.md").read_text(encoding="utf-8")
    assert generator.render(operations) == operations, "run python docs/generate.py"
    assert re.findall(r"<!-- generated: (\w+) -->", operations) == ["settings", "errors"]


def test_the_layout_is_the_oracles() -> None:
    letters = {"u8": "B", "u16": "H", "u32": "I", "i32": "i", "i64": "q", "4 B": "4s"}
    rows = re.findall(r"^\| (\d+) \| ([ui]\d+|4 B) \| `(\w+)` \|", TEXT, re.M)
    found = [(name, int(at), letters[kind]) for at, kind, name in rows]
    assert found == [
        (name.replace("stamp_reserved", "reserved"), at, kind) for name, at, kind in oracle.FIELDS
    ]


def test_all_hex_is_covered() -> None:
    assert len(EXAMPLES) == TEXT.count("```hex") == 12
    for title, size, _, data in EXAMPLES:
        assert len(data) == size, title


@pytest.mark.parametrize(("data", "said"), HEADS)
def test_a_head_decodes_and_encodes_again(data: bytes, said: str) -> None:
    plain = msgpack.unpackb(data)
    assert plain == json.loads(said)
    assert msgpack.packb(plain) == data
    decoders: list[Any] = [frames.decode_push]
    if "op" in plain:
        decoders = [frames.decode_request, frames.decode_reply]
    again = []
    for decoder in decoders:
        try:
            again.append(frames.encode(decoder(data)))
        except ZBrokerError:
            continue
    assert data in again


@pytest.mark.parametrize("data", BATCHES)
def test_a_batch_decodes_and_encodes_again(data: bytes) -> None:
    stamped = data[60:88] != bytes(28)
    fields, records = oracle.parse(data, stamped=stamped)
    assert oracle.seal(dict(fields), data[88:], stamped=stamped) == data
    header = read_header(data)
    decoded = decode_records(data, 0, header)
    assert [
        record and [*record[:3], [list(held) for held in record[3]]] for record in decoded
    ] == records
    if stamped:
        assert [at for at, _ in iter_batches(data)] == [0]
    if not header.compression:
        made = encode_batch(
            decoded, base_timestamp=header.base_timestamp, max_timestamp=header.max_timestamp,
            producer_id=header.producer_id, producer_epoch=header.producer_epoch,
            base_sequence=header.base_sequence,
        )  # fmt: skip
        assert (made[:60], made[88:]) == (data[:60], data[88:])


def test_all_compressions_are_shown() -> None:
    assert {read_header(param.values[0]).compression for param in BATCHES} == {0, 1, 2}


def test_every_code_and_operation_is_in_the_document() -> None:
    for code in BY_CODE:
        assert f"| `{code}` |" in TEXT
    for op in frames._OPERATIONS:
        assert f"#### {op}\n" in TEXT
        assert f"**{op}**" in TEXT, "a paragraph of rules"


def test_links_within_lead_somewhere() -> None:
    titles = re.findall(r"^#+ (.+)$", TEXT, re.M)
    anchors = {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}
    for target in re.findall(r"\]\(#([^)]+)\)", TEXT):
        assert target in anchors
