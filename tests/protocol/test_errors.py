"""Errors: pickled, sent and raised again as they were; codes and hints that clients rely on."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest

from zbroker import errors
from zbroker.errors import BY_CODE, LOCAL_ERRORS, InternalError, ZBrokerError, from_wire
from zbroker.protocol.frames import decode_reply, encode, error_reply, reply_error
from zbroker.protocol.messages import ErrorReply

KINDS = [*BY_CODE.values(), *LOCAL_ERRORS]

# Code → hint, and whether the outcome is unknown: what other languages were told. Add; never change.
ON_THE_WIRE = {
    "internal": ("give_up", False),
    "malformed": ("give_up", False),
    "unknown_operation": ("give_up", False),
    "unsupported_version": ("give_up", False),
    "too_large": ("give_up", False),
    "cluster_mismatch": ("give_up", False),
    "corrupt_batch": ("retry", False),
    "invalid_batch": ("give_up", False),
    "unsupported_attribute": ("give_up", False),
    "invalid_record": ("give_up", False),
    "damaged": ("give_up", False),
    "invalid_topic": ("give_up", False),
    "invalid_setting": ("give_up", False),
    "unknown_topic": ("refresh", False),
    "unknown_partition": ("refresh", False),
    "topic_exists": ("give_up", False),
    "topic_changed": ("refresh", False),
    "not_leader": ("refresh", False),
    "stale_epoch": ("refresh", False),
    "not_enough_replicas": ("retry", True),
    "offset_out_of_range": ("give_up", False),
    "diverged": ("give_up", False),
    "unknown_producer": ("give_up", False),
    "out_of_order_sequence": ("give_up", False),
    "producer_fenced": ("give_up", False),
    "invalid_request": ("give_up", False),
    "timed_out": ("retry", True),
    "disk_full": ("retry", False),
    "storage_failed": ("refresh", True),
    "not_ready": ("retry", False),
    "shutting_down": ("refresh", False),
    "overloaded": ("retry", False),
}


def test_codes_hints_and_outcomes_are_those_that_were_promised() -> None:
    found = {code: (kind.hint, kind.unknown_by_default) for code, kind in BY_CODE.items()}
    assert {code: found.get(code) for code in ON_THE_WIRE} == ON_THE_WIRE


def test_every_class_is_one_code_with_a_sentence() -> None:
    classes = [
        kind for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, ZBrokerError) and kind is not ZBrokerError
    ]  # fmt: skip
    assert {*classes} == {*KINDS}
    assert len({kind.code for kind in KINDS}) == len(KINDS)
    for kind in KINDS:
        assert kind.__doc__
        assert str(kind()) == kind.__doc__
        assert kind.hint in ("retry", "refresh", "give_up")
        assert kind().retriable == (kind.hint != "give_up")


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.code)
@pytest.mark.parametrize("unknown", [None, True, False])
def test_an_error_pickles(kind: type[ZBrokerError], unknown: bool | None) -> None:
    error = kind("what is wrong", outcome_unknown=unknown, first=4, next=9, self="x", message="y")
    for twin in (pickle.loads(pickle.dumps(error)), copy.copy(error), copy.deepcopy(error)):
        assert same(twin, error)


@pytest.mark.parametrize("kind", BY_CODE.values(), ids=lambda kind: kind.code)
@pytest.mark.parametrize("unknown", [None, True, False])
def test_an_error_crosses_the_wire(kind: type[ZBrokerError], unknown: bool | None) -> None:
    error = kind("what is wrong", outcome_unknown=unknown, first=4, name="t", message="y", kind="z")
    reply = decode_reply(encode(error_reply(error, 7)))
    assert isinstance(reply, ErrorReply)
    assert reply.id == 7
    assert same(reply_error(reply), error)


@pytest.mark.parametrize("hint", ["retry", "refresh", "give_up"])
def test_a_code_from_a_newer_node_keeps_its_hint(hint: Any) -> None:
    reply = ErrorReply(code="quota_exceeded", message="slow down", hint=hint, details={"ms": 5})
    error = reply_error(reply)
    assert type(error) is InternalError
    assert error.details == {"ms": 5, "code": "quota_exceeded"}
    assert error.hint == hint
    assert error.retriable == (hint != "give_up")
    assert str(error) == "slow down (quota_exceeded)"
    assert same(pickle.loads(pickle.dumps(error)), error)
    assert InternalError("again").hint == "give_up"


@pytest.mark.parametrize("kind", LOCAL_ERRORS, ids=lambda kind: kind.code)
def test_a_local_error_is_not_taken_from_the_wire(kind: type[ZBrokerError]) -> None:
    assert type(from_wire(kind.code, "no", {})) is InternalError


@pytest.mark.parametrize("name", ["self", "message", "outcome_unknown", "code", "kind", "hint", ""])
def test_hostile_details_do_no_harm(name: str) -> None:
    error = from_wire("not_leader", "there", {name: 5, "leader": "node2"}, outcome_unknown=True)
    assert type(error) is errors.NotLeader
    assert (error.message, error.outcome_unknown, error.code) == ("there", True, "not_leader")
    assert error.details["leader"] == "node2"


def same(one: ZBrokerError, other: ZBrokerError) -> bool:
    facts = ("code", "hint", "retriable", "message", "details", "outcome_unknown")
    return type(one) is type(other) and all(getattr(one, f) == getattr(other, f) for f in facts)
