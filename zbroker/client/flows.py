"""What `Admin` and `AsyncAdmin` do, written once: each a generator that yields tasks and is sent their outcomes.

Pure. A flow's `return` value is what the application gets; an error that it raises is what the application catches.
"""

from __future__ import annotations

import secrets
from collections.abc import Generator, Iterator
from typing import Any, Literal, TypeVar, get_args

from zbroker.client.administering import Task
from zbroker.client.exchange import Outcome
from zbroker.client.parts import names_fit
from zbroker.client.records import (
    ClusterDescription,
    NodeDescription,
    PartitionDescription,
    TopicDescription,
    UnhealthyPartition,
)
from zbroker.errors import InternalError, InvalidRequest, UnknownTopic, ZBrokerError, from_wire
from zbroker.protocol import messages
from zbroker.units import Address

Result = TypeVar("Result")
Flow = Generator[list[Task], list[Outcome], Result]
Kind = TypeVar("Kind", bound=messages.Message)
At = Literal["earliest", "latest"] | tuple[Literal["time"], int]
VoterAction = Literal["add", "remove", "replace"]

SIDE_TIMEOUT = 1.0
"""Seconds that a node has to tell what a description can do without."""
SIDE_TIMEOUT_DEAD = 0.25
"""The same, of a node that the controller takes to be down."""


def good(outcome: Outcome, kind: type[Kind]) -> Kind:
    """The reply, or its error raised."""
    if isinstance(outcome, kind):
        return outcome
    if isinstance(outcome, ZBrokerError):
        raise outcome
    raise InternalError(f"the server answered with {type(outcome).__name__}")


def request_id() -> str:
    """A request's own id, by which the cluster knows it again."""
    return secrets.token_hex(16)


def words(settings: dict[str, Any]) -> dict[str, str | int]:
    """Settings as the wire has them; None, which is no limit, is the word for it."""
    found: dict[str, str | int] = {}
    for name, value in settings.items():
        if value is None:
            value = "unlimited"
        if isinstance(value, bool) or not isinstance(value, str | int):
            raise InvalidRequest(f"setting {name} is a number or text, not {value!r}")
        found[name] = value
    return found


def metadata(topics: list[str] | None) -> Flow[messages.MetadataReply]:
    """The cluster as any server knows it, with these topics at least; None for all."""
    if topics is not None and not names_fit(topics):
        topics = None
    (outcome,) = yield [Task(messages.Metadata(topics=topics))]
    return good(outcome, messages.MetadataReply)


def find_topic(name: str) -> Flow[tuple[messages.MetadataReply, messages.Topic]]:
    """One topic's metadata, or `UnknownTopic`.

    A server that does not know the topic may be behind: the controller has the last word.
    """
    reply = yield from metadata([name])
    topic = _topic_of(reply, name)
    if topic is None:
        controller = [
            Address(node.host, node.port) for node in reply.nodes if node.name == reply.controller
        ]
        for address in controller:
            (outcome,) = yield [
                Task(messages.Metadata(topics=[name]), address, attempts=1, timeout=SIDE_TIMEOUT)
            ]
            if isinstance(outcome, messages.MetadataReply):
                reply, topic = outcome, _topic_of(outcome, name)
    if topic is None:
        raise UnknownTopic(f"there is no topic {name!r}", topic=name)
    return reply, topic


def _topic_of(reply: messages.MetadataReply, name: str) -> messages.Topic | None:
    for topic in reply.topics:
        if topic.name == name and topic.error != "unknown_topic":
            if topic.error is not None:
                raise from_wire(topic.error, f"topic {name!r} cannot be described", {"topic": name})
            return topic
    return None


def create_topic(name: str, settings: dict[str, Any]) -> Flow[TopicDescription]:
    """Makes a topic."""
    message = messages.CreateTopic(name=name, request_id=request_id(), settings=words(settings))
    (outcome,) = yield [Task(message)]
    return described(good(outcome, messages.CreateTopicReply).topic, {})


def alter_topic(name: str, settings: dict[str, Any]) -> Flow[TopicDescription]:
    """Changes the settings of the topic that has this name now."""
    _, topic = yield from find_topic(name)
    message = messages.AlterTopic(
        name=name, topic_id=topic.topic_id, request_id=request_id(), settings=words(settings)
    )
    (outcome,) = yield [Task(message)]
    return described(good(outcome, messages.AlterTopicReply).topic, {})


def delete_topic(name: str) -> Flow[None]:
    """Deletes the topic that has this name now."""
    _, topic = yield from find_topic(name)
    message = messages.DeleteTopic(name=name, topic_id=topic.topic_id, request_id=request_id())
    (outcome,) = yield [Task(message)]
    good(outcome, messages.DeleteTopicReply)


def topics(internal: bool) -> Flow[list[TopicDescription]]:
    """Every topic, by name."""
    reply = yield from metadata(None)
    return [
        described(topic, {})
        for topic in sorted(reply.topics, key=lambda topic: topic.name)
        if topic.error is None and (internal or not topic.name.startswith("__"))
    ]


def describe_topic(name: str) -> Flow[TopicDescription]:
    """A topic, with what its leaders know of its partitions; None where one does not answer."""
    reply, topic = yield from find_topic(name)
    stats: dict[int, messages.PartitionStats] = {}
    asked: set[str] = set()
    while True:
        lacking = [part.leader for part in topic.partitions if part.partition not in stats]
        places = {node.name: node for node in reply.nodes}
        leaders = [one for one in dict.fromkeys(lacking) if one in places and one not in asked]
        if not leaders:
            return described(topic, stats)
        asked.update(leader for leader in leaders if leader is not None)
        outcomes = yield [
            aside(messages.Stats(topic=name, topic_id=topic.topic_id), places[leader])
            for leader in leaders
            if leader is not None
        ]
        for outcome in outcomes:
            if isinstance(outcome, messages.StatsReply):
                stats.update((part.partition, part) for part in outcome.partitions)
        if all(part.partition in stats for part in topic.partitions):
            return described(topic, stats)
        reply, topic = yield from find_topic(name)  # a partition may have another leader by now


def aside(message: messages.Request, node: messages.Node) -> Task:
    """A question to one node, whose answer a description can do without."""
    return Task(
        message,
        Address(node.host, node.port),
        attempts=1,
        timeout=SIDE_TIMEOUT if node.alive else SIDE_TIMEOUT_DEAD,
    )


def cluster() -> Flow[ClusterDescription]:
    """The cluster, with what each node says of itself."""
    reply = yield from metadata(None)
    known_nodes = sorted(reply.nodes, key=lambda node: node.name)
    outcomes = yield [aside(messages.Status(), node) for node in known_nodes]
    nodes = []
    for node, outcome in zip(known_nodes, outcomes, strict=True):
        known: dict[str, Any] = {}
        if isinstance(outcome, messages.StatusReply):
            known = {
                "software": outcome.software, "uptime": outcome.uptime / 1000, "clients": outcome.clients,
                "partitions": outcome.partitions, "leading": outcome.leading,
                "under_replicated": outcome.under_replicated, "size": outcome.size,
                "disk_full": outcome.disk_full,
            }  # fmt: skip
        nodes.append(
            NodeDescription(
                node.name, node.host, node.port, rack=node.rack, alive=node.alive,
                voter=node.voter, drained=node.drained, **known,
            )
        )  # fmt: skip
    return ClusterDescription(
        id=reply.cluster, name=reply.cluster_name, controller=reply.controller, version=reply.version,
        nodes=tuple(nodes), unhealthy=tuple(unhealthy(reply.topics)),
    )  # fmt: skip


def unhealthy(topics: list[messages.Topic]) -> Iterator[UnhealthyPartition]:
    """The partitions that have no leader, lack replicas, move, or may have lost records."""
    for topic in sorted(topics, key=lambda topic: topic.name):
        wanted = topic.settings.get("replicas")
        for part in sorted(topic.partitions, key=lambda part: part.partition):
            kept = len(part.replicas)
            copies = min(kept, int(wanted)) if wanted is not None else kept
            short, moving = len(part.isr) < copies, kept > copies
            if short or moving or part.unclean or part.leader is None:
                missing = tuple(node for node in part.replicas if node not in part.isr)
                yield UnhealthyPartition(
                    topic.name, part.partition, part.leader, tuple(part.replicas), missing,
                    under_replicated=short, moving=moving, unclean=part.unclean,
                    waiting_for=tuple(part.waiting_for), lost_from=_lost_from(part),
                )  # fmt: skip


def _lost_from(part: messages.Partition) -> int | None:
    return part.lost_from if part.lost_from >= 0 else None


def move_partitions(name: str, partition: int | None, to: list[str]) -> Flow[TopicDescription]:
    """Gives partitions of the topic that has this name now other replicas."""
    _, topic = yield from find_topic(name)
    message = messages.MovePartitions(
        name=name, topic_id=topic.topic_id, partition=partition, to=to, request_id=request_id()
    )
    (outcome,) = yield [Task(message)]
    return described(good(outcome, messages.MovePartitionsReply).topic, {})


def accept_loss(name: str, partition: int, node: str | None) -> Flow[TopicDescription]:
    """Gives up what only a lost disk has of a partition, as it is now."""
    _, topic = yield from find_topic(name)
    message = messages.AcceptLoss(
        topic=name, topic_id=topic.topic_id, partition=partition, node=node, request_id=request_id(),
        epoch=next((part.epoch for part in topic.partitions if part.partition == partition), -1),
    )  # fmt: skip
    (outcome,) = yield [Task(message)]
    return described(good(outcome, messages.AcceptLossReply).topic, {})


def drain(node: str, undo: bool) -> Flow[int]:
    """Takes leaderships from a node, or lets it lead again."""
    (outcome,) = yield [Task(messages.DrainNode(node=node, undo=undo, request_id=request_id()))]
    return good(outcome, messages.DrainNodeReply).leading


def change_voters(node: str, action: VoterAction) -> Flow[tuple[str, ...]]:
    """Adds, removes or replaces one voter."""
    if action not in get_args(VoterAction):
        raise InvalidRequest(f'a voter is changed by "add", "remove" or "replace", not {action!r}')
    message = messages.ChangeVoters(node=node, action=action, request_id=request_id())
    (outcome,) = yield [Task(message)]
    return tuple(good(outcome, messages.ChangeVotersReply).voters)


def delete_records(topic: str, partition: int, before: int) -> Flow[int]:
    """Moves a partition's log start up."""
    _, found = yield from find_topic(topic)
    message = messages.DeleteRecords(
        topic=topic,
        topic_id=found.topic_id,
        partition=partition,
        before=before,
        request_id=request_id(),
    )
    (outcome,) = yield [Task(message, (topic, partition))]
    return good(outcome, messages.DeleteRecordsReply).log_start


def offsets(topic: str, at: At, partitions: list[int] | None) -> Flow[dict[int, int]]:
    """An offset by its meaning, of each partition."""
    _, found = yield from find_topic(topic)
    numbers = [part.partition for part in found.partitions] if partitions is None else partitions
    outcomes = yield [
        Task(
            messages.Offsets(
                topic=topic, topic_id=found.topic_id, partition=number,
                at="time" if isinstance(at, tuple) else at, time=at[1] if isinstance(at, tuple) else 0,
            ),
            (topic, number),
        )
        for number in numbers
    ]  # fmt: skip
    return {
        number: good(outcome, messages.OffsetsReply).offset
        for number, outcome in zip(numbers, outcomes, strict=True)
    }


def described(topic: messages.Topic, stats: dict[int, messages.PartitionStats]) -> TopicDescription:
    """A topic as applications see it."""
    partitions = []
    for part in sorted(topic.partitions, key=lambda part: part.partition):
        known: dict[str, Any] = {}
        found = stats.get(part.partition)
        if found is not None:
            known = {
                "start_offset": found.start_offset, "end_offset": found.end_offset,
                "high_watermark": found.high_watermark, "flushed_offset": found.flushed_offset,
                "size": found.size, "segments": found.segments, "records_rate": found.records_rate,
                "bytes_rate": found.bytes_rate, "damaged": tuple(map(tuple, found.damaged)),
            }  # fmt: skip
        partitions.append(
            PartitionDescription(
                part.partition, part.leader, part.epoch, tuple(part.replicas), tuple(part.isr),
                unclean=part.unclean, waiting_for=tuple(part.waiting_for), lost_from=_lost_from(part),
                **known,
            )
        )  # fmt: skip
    return TopicDescription(topic.name, topic.topic_id, dict(topic.settings), tuple(partitions))
