"""Messages in frames: round trips of every one, and what each wrong field is answered."""

from __future__ import annotations

from typing import Any

import msgpack
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from protocol.strategies import EVERY, PUSHED, REPLIES, REQUESTS, message

from zbroker import errors
from zbroker.protocol import frames
from zbroker.protocol.messages import ClusterChange, Fetch, Hello, Message, Produce, Push


def head(**fields: Any) -> bytes:
    packed: bytes = msgpack.packb(fields, use_bin_type=True)
    return packed


def decode(kind: type, data: bytes) -> Any:
    """A head decoded as the side that gets it does."""
    if kind in PUSHED:
        return (frames.decode_push if kind is Push else frames.decode_change)(data)
    return (frames.decode_request if kind in REQUESTS else frames.decode_reply)(data)


@pytest.mark.parametrize("kind", EVERY, ids=lambda kind: kind.__name__)
@given(data=st.data())
def test_every_message_makes_the_round_trip(kind: type, data: st.DataObject) -> None:
    sent = data.draw(message(kind))
    wire = frames.encode(sent)
    assert decode(kind, wire) == sent
    plain = msgpack.unpackb(wire, raw=False, strict_map_key=False)
    assert decode(kind, msgpack.packb(plain, use_bin_type=True)) == sent, (
        "as another library has it"
    )
    again = {**plain, "later": {"a": [1, None]}, "x": b"unknown fields are ignored"}
    assert decode(kind, msgpack.packb(again, use_bin_type=True)) == sent


def test_requests_and_replies_answer_each_other() -> None:
    def tags(kinds: Any) -> list[str]:
        return [kind.__struct_config__.tag for kind in kinds]

    assert [*tags(REQUESTS), "error"] == tags(REPLIES)
    for kind in (*REQUESTS, *REPLIES):
        assert issubclass(kind, Message)
        assert kind.__struct_config__.tag_field == "op"


def test_every_message_and_field_says_what_it_is() -> None:
    for kind in EVERY:
        assert kind.__doc__
        info = msgspec.inspect.type_info(kind)
        assert isinstance(info, msgspec.inspect.StructType)
        for field in info.fields:
            described = field.type
            assert isinstance(described, msgspec.inspect.Metadata), f"{kind.__name__}.{field.name}"
            assert (described.extra_json_schema or {}).get("description")


def test_a_bare_request_is_its_op_alone() -> None:
    assert frames.decode_request(head(op="hello")) == Hello()
    fetch = frames.decode_request(head(op="fetch", topic="t"))
    assert fetch == Fetch(topic="t", partition=0, offset=0, epoch=-1, max_bytes=1 << 20, wait=0)
    produce = frames.decode_request(head(op="produce", topic="t"))
    assert produce == Produce(topic="t", acks="all", timeout=30_000)


# Wrong types: a coded error that names the field ---

WRONG: dict[type, list[Any]] = {
    msgspec.inspect.IntType: ["1", 1.0, 1.5, float("nan"), True, b"1", [1], {}, 2**64 - 1],
    msgspec.inspect.StrType: [1, b"text", True, ["a"], {}],
    msgspec.inspect.LiteralType: ["some", 1, b"all", None, "x" * 5000],
    msgspec.inspect.ListType: ["a", 1, {}, b""],
    msgspec.inspect.DictType: ["a", 1, [], b""],
    msgspec.inspect.UnionType: [1.5, True],
    msgspec.inspect.BoolType: ["true", 1, None],
}


@pytest.mark.parametrize("kind", REQUESTS, ids=lambda kind: kind.__name__)
def test_a_field_of_a_wrong_type_is_named(kind: type) -> None:
    info = msgspec.inspect.type_info(kind)
    assert isinstance(info, msgspec.inspect.StructType)
    assert info.fields
    for field in info.fields:
        assert isinstance(field.type, msgspec.inspect.Metadata)
        for value in WRONG[type(field.type.type)]:
            request = head(op=info.tag, **{field.name: value})
            with pytest.raises(errors.MalformedMessage) as caught:
                frames.decode_request(request)
            assert field.name in str(caught.value)
            assert len(str(caught.value)) < 400
            assert frames.request_op(request) == info.tag


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"op": "produce", "partition": -1}, "`int` >= 0 - at `partition`"),
        ({"op": "produce", "partition": 2**31}, "`int` <= 2147483647 - at `partition`"),
        ({"op": "fetch", "epoch": -2}, "`int` >= -1 - at `epoch`"),
        ({"op": "fetch", "offset": -1}, "`int` >= 0 - at `offset`"),
        ({"op": "produce", "topic": "t" * 1001}, "at `topic`"),
        ({"op": "metadata", "topics": ["a", 1]}, "at `topics[1]`"),
        ({"op": "hello", "versions": [1, "2"]}, "at `versions[1]`"),
        ({"op": 5}, "at `op`"),
        ({}, "`op`"),
        ({"id": 4}, "`op`"),
    ],
)
def test_what_is_wrong_is_said(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(errors.MalformedMessage) as caught:
        frames.decode_request(head(**fields))
    assert said in str(caught.value)


def test_an_unknown_operation_has_a_code_of_its_own() -> None:
    for op in ("", "fetsch", "error", "x" * 9000):
        with pytest.raises(errors.UnknownOperation) as caught:
            frames.decode_request(head(op=op, id=3))
        assert op[:40] in str(caught.value)
        assert len(str(caught.value)) < 200
    twice = b"\x82\xa2op\xa6status\xa2op\xa5hello"
    with pytest.raises(errors.MalformedMessage, match="more than once"):
        frames.decode_request(twice)


@pytest.mark.parametrize(
    "data",
    [b"", b"\xc0", b"\x90", b"\x05", b"\xa2op", b"\xc1", b"\x81\xa2op", head(op="status") + b"\x00",
     b"\x81\x01\x02", b"\x81\xa2op\xa1\xff", b"not MessagePack"],
)  # fmt: skip
def test_what_is_not_one_map_is_malformed(data: bytes) -> None:
    for decoder in (frames.decode_request, frames.decode_reply, frames.decode_push):
        if decoder is frames.decode_push and data == b"\x81\xa2op\xa1\xff":
            continue  # no field of a push: ignored
        with pytest.raises(errors.MalformedMessage):
            decoder(data)


def test_a_head_is_bounded() -> None:
    fits = head(op="hello", client="x" * (frames.HEAD_MAX - 100))
    assert frames.decode_request(fits)
    with pytest.raises(errors.MessageTooLarge, match="65536"):
        frames.decode_request(head(op="hello", client="x" * frames.HEAD_MAX))


# What can be saved of a broken head ---


@pytest.mark.parametrize(
    ("data", "number"),
    [
        (head(op="nonsense", id=77), 77),
        (head(op="fetch", id=77, offset="a"), 77),
        (head(id=2**63 - 1), 2**63 - 1),
        (head(id=2**63), 0),
        (head(id=-1), 0),
        (head(id=True), 0),
        (head(id="77"), 0),
        (head(id=1.0), 0),
        (head(id=[{}]), 0),
        (head(op="fetch"), 0),
        (b"\xff", 0),
        (b"", 0),
        (b"\x81\xa2id\x81\x81\x01\x01\x01", 0),
    ],
)
def test_the_correlation_number_is_saved_where_it_can_be(data: bytes, number: int) -> None:
    assert frames.request_id(data) == number


# Frames ---


def test_frames_come_apart() -> None:
    h, b, c = b"head", b"body", b"more"
    assert frames.split([h]) == (False, h, [])
    assert frames.split([h, b]) == (False, h, [b])
    assert frames.split([b"", h]) == (True, h, [])
    assert frames.split([b"", h, b, c]) == (True, h, [b, c])
    assert frames.split([h, b""]) == (False, h, [b""])
    assert frames.split([memoryview(b""), memoryview(h)]).delimited


@pytest.mark.parametrize(
    "parts",
    [[], [b""], [b"", b""], [b"", b"", b"head"], [b"head"] * 5, [b"", *[b"x"] * 4], [b""] * 100000],
    ids=len,
)
def test_frames_that_are_no_message_are_malformed(parts: list[bytes]) -> None:
    with pytest.raises(errors.MalformedMessage):
        frames.split(parts)


def test_subjects_end_in_a_slash() -> None:
    assert frames.subject("t1", 0) == b"t1/0/"
    assert not frames.subject("t10", 0).startswith(frames.subject("t1", 0))
    assert not frames.subject("t", 10).startswith(frames.subject("t", 1))
    assert not frames.CLUSTER_SUBJECT.startswith(b"t")


def test_a_pushed_head_of_another_version_is_not_read() -> None:
    for version in (0, 2, -1):
        for decoder in (frames.decode_push, frames.decode_change):
            with pytest.raises(errors.MalformedMessage, match=f"version {version}"):
                decoder(head(v=version))


def test_a_cluster_change_is_told_from_a_push_by_its_subject() -> None:
    change = ClusterChange(cluster="c" * 32, version=9, node="node1", topics=["a"])
    assert frames.decode_change(frames.encode(change)) == change
