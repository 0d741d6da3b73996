"""The parts of docs that code can write: tables of messages, errors, settings, layout, limits; hex.

    python docs/generate.py            writes them between their markers
    python docs/generate.py --check    says what would change, and exits with 1 when anything would

A part stands between `<!-- generated: NAME -->` and `<!-- end -->`; a function below of that name
writes it. Owns nothing else of the documents.
"""

from __future__ import annotations

import re
import sys
import textwrap
from collections.abc import Iterable
from pathlib import Path
from typing import Any, get_args

import msgspec
from msgspec import inspect

from zbroker import topics
from zbroker.client.partitioner import VECTORS
from zbroker.errors import BY_CODE
from zbroker.protocol import batch, compression, frames, messages
from zbroker.protocol.messages import ClusterChange, Push, Reply, Request

DOCUMENTS = [Path(__file__).with_name(name) for name in ("protocol.md", "operations.md")]
PART = re.compile(r"(<!-- generated: ([\w ]+) -->\n).*?(<!-- end -->)", re.DOTALL)

TOPIC_ID = "00112233445566778899aabbccddeeff"
NOW = 1_790_000_000_000

REPLIES = {
    kind.__struct_config__.tag: kind for kind in get_args(Reply) if kind is not messages.ErrorReply
}
SHARED = (
    messages.Topic, messages.Partition, messages.Node, messages.PartitionStats,
    messages.TopicPartitions, messages.GroupOffset, messages.GroupMember, messages.GroupListing,
)  # fmt: skip


# Tables ---


def table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A Markdown table; bars inside cells are escaped."""
    lines = [[*header], *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    lines.insert(1, ["---"] * len(lines[0]))
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def kind_of(kind: inspect.Type) -> str:
    """A type in MessagePack's words."""
    match kind:
        case inspect.Metadata():
            return kind_of(kind.type)
        case inspect.UnionType():
            return " or ".join(map(kind_of, kind.types))
        case inspect.LiteralType():
            return " or ".join(f"`{value}`" for value in kind.values)
        case inspect.StructType():
            return f"[{kind.cls.__name__}](#{kind.cls.__name__.lower()})"
        case inspect.ListType():
            return f"array of {kind_of(kind.item_type)}"
        case inspect.TupleType():
            return f"[{', '.join(map(kind_of, kind.item_types))}]"
        case inspect.DictType():
            return f"map of str to {kind_of(kind.value_type)}"
        case inspect.IntType() if kind.ge is not None:
            low = -1 if kind.ge == -1 else kind.ge
            return f"int, {low} to 2^{int(kind.le or 0).bit_length()}-1"
        case inspect.StrType() if kind.max_length:
            return f"str, at most {kind.max_length} characters"
    names = {
        inspect.IntType: "int", inspect.StrType: "str", inspect.BoolType: "bool",
        inspect.FloatType: "float", inspect.NoneType: "nil", inspect.AnyType: "anything",
    }  # fmt: skip
    return names[type(kind)]


def rule_of(kind: inspect.Type) -> str:
    """A type as ABNF."""
    match kind:
        case inspect.Metadata():
            return rule_of(kind.type)
        case inspect.UnionType():
            return f"({' / '.join(map(rule_of, kind.types))})"
        case inspect.LiteralType():
            values = [f'"{value}"' for value in kind.values]
            return f"({' / '.join(values)})"
        case inspect.StructType():
            return rule_name(kind.cls)
        case inspect.ListType():
            return f"array-of {rule_of(kind.item_type)}"
        case inspect.TupleType():
            return f"array {' '.join(map(rule_of, kind.item_types))}"
        case inspect.DictType():
            return f"map-of (str {rule_of(kind.value_type)})"
    return kind_of(kind).partition(",")[0].replace("anything", "any")


def rule_name(kind: type) -> str:
    """A struct's name in the grammar: `PartitionStats` is `partition-stats`."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "-", kind.__name__).lower()


def rule(name: str, kind: type, *opening: str) -> str:
    """The ABNF of one map."""
    info = inspect.type_info(kind)
    assert isinstance(info, inspect.StructType)
    fields = [f'"{field.name}" {rule_of(field.type)}' for field in info.fields]
    parts = [
        f"{name:23}= map",
        *opening,
        "*(",
        *(f"{field} /" for field in fields[:-1]),
        fields[-1],
        ")",
    ]
    whole = " ".join(part.replace(" ", "\0") for part in parts)  # lines break between fields only
    lines = textwrap.wrap(whole, 100, subsequent_indent=" " * 25, break_on_hyphens=False)
    return "\n".join(lines).replace("\0", " ")


def grammar(op: str, request: type, reply: type) -> str:
    """The ABNF of one command: what the client (C) and the node (N) send."""
    name = op.replace("_", "-")
    body = {"produce": " batch"}.get(op, "")
    chunk = {"fetch": " chunk"}.get(op, "")
    answer = f"[delimiter] ( {name}-reply{chunk} / error )"
    if op == "produce":
        answer = f"[ {answer} ]   ; nothing where acks is none"
    rules = [
        f"C:{name:21}= [delimiter] {name}-request{body}",
        f"N:{name:21}= {answer}",
        rule(f"{name}-request", request, f'"op" "{op}"'),
        rule(f"{name}-reply", reply, f'"op" "{op}"'),
    ]
    return "```abnf\n" + "\n".join(rules) + "\n```\n"


def default_of(field: inspect.Field) -> str:
    """A field's default as text: what its absence means."""
    if field.required:
        return "required"
    if field.default_factory is not msgspec.NODEFAULT:
        value = field.default_factory()
    else:
        value = field.default
    if value is None:
        return "nil"
    if isinstance(value, bool):
        return str(value).lower()
    return f"`{value}`" if isinstance(value, str) and value else repr(value).replace("''", '""')


def fields_of(kind: type) -> str:
    """The table of a struct's own fields; `op` and `id` are every message's."""
    info = inspect.type_info(kind)
    assert isinstance(info, inspect.StructType)
    rows = []
    for field in info.fields:
        if field.name == "id" and info.tag_field == "op":
            continue
        assert isinstance(field.type, inspect.Metadata)
        described = (field.type.extra_json_schema or {})["description"]
        rows.append([f"`{field.name}`", kind_of(field.type), default_of(field), described])
    if not rows:
        return "No fields of its own.\n"
    return table(["field", "type", "default", "meaning"], rows)


def sentence(kind: type) -> str:
    """A docstring as one paragraph."""
    return " ".join((kind.__doc__ or "").split())


def commands() -> str:
    """Every request and its reply."""
    parts = []
    for kind in get_args(Request):
        op = kind.__struct_config__.tag
        reply = REPLIES[op]
        parts += [f"#### {op}\n", sentence(kind) + "\n", grammar(op, kind, reply)]
        parts += [f"Request `{op}`:\n", fields_of(kind)]
        parts += [f"Reply `{op}`: {sentence(reply)}\n", fields_of(reply)]
    error = "```abnf\n" + rule("error", messages.ErrorReply, '"op" "error"') + "\n```\n"
    parts += ["#### error\n", sentence(messages.ErrorReply) + "\n", error]
    parts.append(fields_of(messages.ErrorReply))
    return "\n".join(parts)


def structures() -> str:
    """Maps that stand inside requests and replies."""
    return "\n".join(part for kind in SHARED for part in described(kind))


def described(kind: type) -> tuple[str, ...]:
    """A map's paragraph, grammar and table."""
    abnf = "```abnf\n" + rule(rule_name(kind), kind) + "\n```\n"
    return f"#### {kind.__name__}\n", sentence(kind) + "\n", abnf, fields_of(kind)


def pushed() -> str:
    """Heads of what is pushed."""
    return "\n".join(part for kind in (Push, ClusterChange) for part in described(kind))


def errors() -> str:
    """Every code that a node answers."""
    rows = (
        [f"`{code}`", f"`{kind.hint}`", "yes" if kind.unknown_by_default else "", sentence(kind)]
        for code, kind in BY_CODE.items()
    )
    return table(["code", "hint", "outcome unknown", "meaning"], rows)


def settings() -> str:
    """Every setting of a topic."""
    defaults = topics.TopicSettings().words()
    computed = {"replicas": "min(3, nodes)", "min_insync": "min(2, replicas)"}
    changes = {"any": "yes", "grow": "only to more", "never": "no"}
    rows = (
        [f"`{name}`", computed.get(name, f"`{defaults[name]}`"), changes[setting.change], setting.doc]
        for name, setting in topics.SETTINGS.items()
    )  # fmt: skip
    return table(["setting", "default", "may change", "meaning"], rows)


def layout() -> str:
    """The header, out of the docstring of `zbroker.protocol.batch`."""
    rows: list[list[str]] = []
    zone = "producer"
    body = (batch.__doc__ or "").split("\n====== ")[2]
    for line in body.splitlines()[1:]:
        cells = [line[:6].strip(), line[7:13].strip(), line[14:34].strip(), line[35:].strip()]
        if cells[0].startswith("--"):
            zone = "leader"
        elif cells[0]:
            rows.append([cells[0], cells[1], f"`{cells[2]}`", zone, cells[3]])
        else:
            rows[-1][4] += " " + cells[3]
    return table(["offset", "type", "field", "zone", "meaning"], rows)


def limits() -> str:
    """What is bounded by the protocol itself."""
    rows = [
        ("frames of a request, the delimiter included", f"{frames.FRAMES_MAX}"),
        ("head of a request", f"{frames.HEAD_MAX} bytes"),
        ("offsets that a batch spans", f"{batch.MAX_SPAN}"),
        ("payload once decompressed", f"{batch.MAX_UNCOMPRESSED} bytes; a topic's `max_batch` is lower"),
        ("Zstandard window", f"{1 << compression.ZSTD_WINDOW_LOG_MAX} bytes"),
        ("correlation number, offset, timestamp, sequence", "0 to 2^63-1"),
        ("partition number, leader epoch, producer epoch", "0 to 2^31-1"),
    ]  # fmt: skip
    return table(["what", "most"], rows)


def vectors() -> str:
    """Keys and the partitions that they go to."""
    rows = (
        [f"`{key.hex() if len(key) < 20 else f'00 01 02 … {key[-1]:02x}'}`" if key else "(empty)",
         f"`{number:08x}`", str(number % 4), str(number % 7)]
        for key, number in VECTORS
    )  # fmt: skip
    return table(["key, hex", "CRC-32", "of 4 partitions", "of 7 partitions"], rows)


# Examples ---


def dump(data: bytes) -> str:
    """Hex, sixteen bytes a line, with what is readable beside it."""
    lines = []
    for at in range(0, len(data), 16):
        piece = data[at : at + 16]
        text = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in piece)
        lines.append(f"{at:04x}  {piece.hex(' '):47}  {text}")
    return "\n".join(lines)


def example_batch(*, stamped: bool = False) -> bytearray:
    """The batch of the worked examples."""
    records: list[batch.EncodedRecord | None] = [
        (0, b"store-7", b"17.50", (("unit", b"EUR"),)),
        (-3, b"store-7", None, ()),
        (12, None, b"", (("note", None), ("note", b"x"))),
    ]
    made = batch.encode_batch(
        records, base_timestamp=NOW, max_timestamp=NOW + 12, producer_id=4711, producer_epoch=0,
        base_sequence=0,
    )  # fmt: skip
    if stamped:
        batch.stamp(made, base_offset=42, append_time=NOW + 20, leader_epoch=3)
    return made


def example_messages() -> list[tuple[str, Any]]:
    """Heads of the worked examples."""
    return [
        ("A bare metadata request", messages.Metadata(id=1, topics=["sales"])),
        ("Its reply", messages.MetadataReply(
            id=1, cluster=TOPIC_ID[::-1], cluster_name="lab", version=17, controller="node1",
            nodes=[messages.Node(name="node1", host="192.168.1.11", port=5550)],
            topics=[messages.Topic(name="sales", topic_id=TOPIC_ID, settings={"partitions": 1}, partitions=[
                messages.Partition(partition=0, leader="node1", epoch=3, replicas=["node1"], isr=["node1"]),
            ])],
        )),
        ("The head of a produce request", messages.Produce(id=2, topic_id=TOPIC_ID, partition=0)),
        ("Its reply", messages.ProduceReply(
            id=2, base_offset=42, append_time=NOW + 20, epoch=3, durability="flushed",
        )),
        ("A fetch request that waits", messages.Fetch(
            id=3, topic_id=TOPIC_ID, partition=0, offset=42, epoch=3, wait=5000,
        )),
        ("The head of its reply", messages.FetchReply(
            id=3, topic_id=TOPIC_ID, partition=0, epoch=3, base=42, next=45, next_epoch=3, high_watermark=45,
        )),
        ("An error", messages.ErrorReply(
            id=4, code="not_leader", message="node2 leads partition 0 of 'sales'", hint="refresh",
            details={"leader": "node2"},
        )),
        ("The head of a pushed batch", Push(topic_id=TOPIC_ID, epoch=3, high_watermark=45)),
    ]  # fmt: skip


def examples() -> str:
    """Heads in hex, with what they say."""
    parts = []
    for title, message in example_messages():
        data = frames.encode(message)
        said = msgspec.json.encode(msgspec.msgpack.decode(data)).decode()
        parts.append(
            f"{title}, {len(data)} bytes:\n\n```json\n{said}\n```\n\n```hex\n{dump(data)}\n```\n"
        )
    return "\n".join(parts)


def batches() -> str:
    """Whole batches in hex."""
    named = [
        ("As its producer sends it, uncompressed", example_batch()),
        ("The same as the leader stamped it: bytes 60 to 87 are new", example_batch(stamped=True)),
    ]
    return "\n".join(
        f"{title}, {len(data)} bytes:\n\n```hex\n{dump(bytes(data))}\n```\n"
        for title, data in named
    )


def render(text: str) -> str:
    """The document with every generated part made anew."""
    return PART.sub(lambda found: f"{found[1]}\n{globals()[found[2]]()}\n{found[3]}", text)


def main(arguments: list[str]) -> int:
    stale = 0
    for document in DOCUMENTS:
        old = document.read_text(encoding="utf-8")
        new = render(old)
        if "--check" not in arguments:
            document.write_text(new, encoding="utf-8")
        elif new != old:
            print(f"{document.name} is not what the code says; run python docs/generate.py")
            stale = 1
    return stale


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
