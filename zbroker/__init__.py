"""zbroker: a replicated log broker over ZeroMQ.

The public face: `Producer`, `Consumer`, `Admin`, their asyncio kin, `Record` and the errors. Each is loaded when it is
first asked for, so that `import zbroker` costs next to nothing and brings no ZeroMQ.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from zbroker.client.admin import Admin
    from zbroker.client.aio import AsyncAdmin, AsyncDelivery, AsyncProducer
    from zbroker.client.aioconsumer import AsyncConsumer
    from zbroker.client.consumer import Consumer
    from zbroker.client.delivery import Delivery, DeliveryGroup
    from zbroker.client.producer import Producer
    from zbroker.client.records import (
        ClusterDescription,
        GroupDescription,
        GroupOffset,
        GroupSummary,
        MemberDescription,
        NodeDescription,
        OffsetChange,
        PartitionDescription,
        Record,
        RecordMetadata,
        TopicDescription,
        TopicPartition,
        UnhealthyPartition,
    )
    from zbroker.errors import ZBrokerError

__version__ = "0.1.0"

_PLACES = {
    "Admin": "client.admin",
    "AsyncAdmin": "client.aio",
    "AsyncConsumer": "client.aioconsumer",
    "AsyncDelivery": "client.aio",
    "AsyncProducer": "client.aio",
    "ClusterDescription": "client.records",
    "Consumer": "client.consumer",
    "Delivery": "client.delivery",
    "DeliveryGroup": "client.delivery",
    "GroupDescription": "client.records",
    "GroupOffset": "client.records",
    "GroupSummary": "client.records",
    "MemberDescription": "client.records",
    "NodeDescription": "client.records",
    "OffsetChange": "client.records",
    "PartitionDescription": "client.records",
    "Producer": "client.producer",
    "Record": "client.records",
    "RecordMetadata": "client.records",
    "TopicDescription": "client.records",
    "TopicPartition": "client.records",
    "UnhealthyPartition": "client.records",
    "ZBrokerError": "errors",
}


def __getattr__(name: str) -> Any:
    """Loads a public name on its first use (PEP 562); every error class is one too."""
    place = _PLACES.get(name)
    if place is not None:
        found = getattr(importlib.import_module(f"zbroker.{place}"), name)
        globals()[name] = found
        return found
    if name[:1].isupper():
        errors = importlib.import_module("zbroker.errors")
        kind = getattr(errors, name, None)
        if isinstance(kind, type) and issubclass(kind, errors.ZBrokerError):
            globals()[name] = kind
            return kind
    raise AttributeError(f"module 'zbroker' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_PLACES})


__all__ = [
    "Admin", "AsyncAdmin", "AsyncConsumer", "AsyncDelivery", "AsyncProducer", "ClusterDescription", "Consumer",
    "Delivery", "DeliveryGroup", "GroupDescription", "GroupOffset", "GroupSummary", "MemberDescription",
    "NodeDescription", "OffsetChange", "PartitionDescription", "Producer", "Record", "RecordMetadata",
    "TopicDescription", "TopicPartition", "UnhealthyPartition", "ZBrokerError", "__version__",
]  # fmt: skip
