"""The desk for topics: describes them, and takes the controller's decisions through the metadata log.

Owns who waits for a decision to be committed and carried out here. Never opens or deletes a log itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from zbroker.broker.metadata_log import MetadataLog
from zbroker.broker.ports import BrokerSettings, Conversation, FreshId
from zbroker.cluster import controller
from zbroker.cluster.metadata import TopicState
from zbroker.cluster.records import MetadataRecord, TopicAltered, TopicCreated
from zbroker.errors import InvalidSetting, UnknownTopic, ZBrokerError
from zbroker.protocol import frames as wire
from zbroker.protocol.batch import Buffer
from zbroker.protocol.messages import (
    AlterTopic,
    AlterTopicReply,
    CreateTopic,
    CreateTopicReply,
    DeleteTopic,
    DeleteTopicReply,
    Metadata,
    MetadataReply,
    Node,
    Partition,
    Reply,
    Topic,
)
from zbroker.units import format_size

Decided = Callable[[str, str], None]
"""Carries out what was committed about a topic (id, name)."""
IsOpening = Callable[[str], bool]
"""Whether partitions of a topic (id) are still being opened."""
MakeReply = Callable[[int, Topic], Reply]


class AdminDesk:
    """Takes topics from request to reply."""

    def __init__(
        self,
        log: MetadataLog,
        settings: BrokerSettings,
        reply: Callable[[Conversation, Reply, Buffer | None], None],
        decided: Decided,
        is_opening: IsOpening,
        fresh_id: FreshId,
    ) -> None:
        self._log = log
        self._settings = settings
        self._reply = reply
        self._decided = decided
        self._is_opening = is_opening
        self._fresh_id = fresh_id
        self._opening: dict[str, list[tuple[Conversation, MakeReply]]] = {}
        """Who waits until a topic's partitions take records, by topic id."""

    def describe(self, to: Conversation, request: Metadata) -> None:
        """Answers with the cluster, and the topics asked for."""
        state = self._log.metadata
        if request.topics is None:
            topics = [describe_topic(topic) for topic in state.topics.values()]
        else:
            topics = [self._named(name) for name in dict.fromkeys(request.topics)]
        reply = MetadataReply(
            id=to.id, cluster=state.cluster_id or "", cluster_name=state.cluster_name,
            version=self._log.committed, controller=self._settings.node, topics=topics,
            nodes=[
                Node(name=node.node, host=node.host, port=node.port, rack=node.rack)
                for node in state.nodes.values()
            ],
        )  # fmt: skip
        self._reply(to, reply, None)

    def create_topic(self, to: Conversation, request: CreateTopic, wall: int) -> None:
        """Makes a topic; answers once its partitions take records."""
        records = controller.create_topic(
            self._log.metadata,
            name=request.name,
            given=request.settings,
            defaults=self._settings.topic_defaults,
            topic_id=self._fresh_id(),
            request_id=request.request_id,
        )
        self._check_fits(records)
        self._change(to, request.name, records, wall, _created)

    def alter_topic(self, to: Conversation, request: AlterTopic, wall: int) -> None:
        """Changes a topic; answers once new partitions take records."""
        records = controller.alter_topic(
            self._log.metadata, name=request.name, topic_id=request.topic_id, given=request.settings
        )
        self._check_fits(records)
        self._change(to, request.name, records, wall, _altered)

    def delete_topic(self, to: Conversation, request: DeleteTopic, wall: int) -> None:
        """Deletes a topic; answers once that cannot be undone."""
        metadata = self._log.metadata
        records = controller.delete_topic(
            metadata, name=request.name, topic_id=request.topic_id, request_id=request.request_id
        )
        topic_id = metadata.ids[request.name] if records else metadata.deletions[request.request_id]

        def committed(error: ZBrokerError | None) -> None:
            if error is not None:
                self._reply(to, wire.error_reply(error, to.id), None)
                return
            if records:
                self._decided(topic_id, request.name)
                gone = UnknownTopic(f"topic {request.name!r} was deleted")
                for waiting, _ in self._opening.pop(topic_id, []):
                    self._reply(waiting, wire.error_reply(gone, waiting.id), None)
            self._reply(to, DeleteTopicReply(id=to.id, topic_id=topic_id), None)

        self._log.propose(records, committed, wall)

    def _check_fits(self, records: Sequence[MetadataRecord]) -> None:
        """That the batches of a topic fit into the frames that this node takes."""
        limit = self._settings.batch_max
        for record in records:
            if (
                isinstance(record, TopicCreated | TopicAltered)
                and record.settings.max_batch > limit
            ):
                raise InvalidSetting(
                    f"max_batch: found {format_size(record.settings.max_batch)}, expected at most "
                    f"{format_size(limit)}: a batch has to fit into a frame (limits: frame)",
                    setting="max_batch",
                )

    def partition_opened(self, topic_id: str) -> None:
        """A partition takes records; with the last one, those who made the topic are told."""
        if topic_id in self._opening and not self._is_opening(topic_id):
            topic = describe_topic(self._log.metadata.topics[topic_id])
            for to, make_reply in self._opening.pop(topic_id):
                self._reply(to, make_reply(to.id, topic), None)

    def _change(
        self,
        to: Conversation,
        name: str,
        records: Sequence[MetadataRecord],
        wall: int,
        make_reply: MakeReply,
    ) -> None:
        def committed(error: ZBrokerError | None) -> None:
            topic = self._log.metadata.topic_named(name)
            if error is None and topic is None:
                error = UnknownTopic(f"topic {name!r} was deleted in the meantime")
            if error is not None:
                self._reply(to, wire.error_reply(error, to.id), None)
                return
            assert topic is not None
            if records:
                self._decided(topic.topic_id, name)
            if self._is_opening(topic.topic_id):
                self._opening.setdefault(topic.topic_id, []).append((to, make_reply))
            else:
                self._reply(to, make_reply(to.id, describe_topic(topic)), None)

        self._log.propose(records, committed, wall)

    def _named(self, name: str) -> Topic:
        topic = self._log.metadata.topic_named(name)
        if topic is None:
            return Topic(name=name, error=UnknownTopic.code)
        return describe_topic(topic)


def describe_topic(topic: TopicState) -> Topic:
    """A topic as clients are told of it."""
    return Topic(
        name=topic.name,
        topic_id=topic.topic_id,
        settings=topic.settings.words(),
        partitions=[
            Partition(
                partition=number,
                leader=state.leader,
                epoch=state.epoch,
                replicas=state.replicas,
                isr=state.isr,
            )
            for number, state in enumerate(topic.partitions)
        ],
    )


def _created(correlation: int, topic: Topic) -> Reply:
    return CreateTopicReply(id=correlation, topic=topic)


def _altered(correlation: int, topic: Topic) -> Reply:
    return AlterTopicReply(id=correlation, topic=topic)
