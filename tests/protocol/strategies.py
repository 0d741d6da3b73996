"""Hypothesis strategies for messages, made from the types themselves, so that a new one is covered."""

from __future__ import annotations

from typing import Any, get_args

import msgspec
from hypothesis import strategies as st
from msgspec import inspect

from zbroker.protocol.messages import ClusterChange, Push, Reply, Request

REQUESTS: tuple[type[msgspec.Struct], ...] = get_args(Request)
REPLIES: tuple[type[msgspec.Struct], ...] = get_args(Reply)
PUSHED: tuple[type[msgspec.Struct], ...] = (Push, ClusterChange)
EVERY = REQUESTS + REPLIES + PUSHED

I64 = st.integers(-(2**63), 2**63 - 1)
ANY = st.recursive(
    st.none() | st.booleans() | I64 | st.text(max_size=5) | st.binary(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=5), inner, max_size=2),
    max_leaves=4,
)  # fmt: skip


def of(kind: inspect.Type) -> st.SearchStrategy[Any]:
    """Values of a type that msgspec knows."""
    match kind:
        case inspect.Metadata():
            return of(kind.type)
        case inspect.StructType():
            return message(kind.cls)
        case inspect.UnionType():
            return st.one_of(*map(of, kind.types))
        case inspect.LiteralType():
            return st.sampled_from(kind.values)
        case inspect.IntType():
            low = -(2**63) if kind.ge is None else kind.ge
            return st.integers(low, 2**63 - 1 if kind.le is None else kind.le)
        case inspect.StrType():
            return st.text(max_size=12)
        case inspect.BoolType():
            return st.booleans()
        case inspect.FloatType():
            return st.floats(allow_nan=False)
        case inspect.NoneType():
            return st.none()
        case inspect.AnyType():
            return ANY
        case inspect.ListType():
            return st.lists(of(kind.item_type), max_size=3)
        case inspect.TupleType():
            return st.tuples(*map(of, kind.item_types))
        case inspect.DictType():
            return st.dictionaries(of(kind.key_type), of(kind.value_type), max_size=3)
    raise AssertionError(f"tests/protocol/strategies.py does not know {kind}")


def message(struct: type[msgspec.Struct]) -> st.SearchStrategy[Any]:
    """Messages of one type: each field left out or of any value."""
    info = inspect.type_info(struct)
    assert isinstance(info, inspect.StructType)
    needed = {field.name: of(field.type) for field in info.fields if field.required}
    optional = {field.name: of(field.type) for field in info.fields if not field.required}
    optional.pop("v", None)  # the version is one
    return st.fixed_dictionaries(needed, optional=optional).map(lambda given: struct(**given))
