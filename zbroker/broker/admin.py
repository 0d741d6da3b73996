"""The desk for what clients ask of the cluster: describes it, and takes their requests to the controller and back.

Owns who waits for a decision to be carried out here. Never decides, and never opens or deletes a log itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, TypeVar

import msgspec

from zbroker.broker.control import Answer
from zbroker.broker.keeper import Keeper
from zbroker.broker.petitions import Petitions
from zbroker.broker.ports import Conversation, FreshId, Replier
from zbroker.cluster import controller, recovery
from zbroker.cluster.metadata import Metadata as ClusterMetadata
from zbroker.cluster.metadata import TopicState
from zbroker.cluster.quorum import MetadataPartition
from zbroker.errors import InternalError, UnknownTopic, ZBrokerError
from zbroker.protocol import frames as wire
from zbroker.protocol.messages import (
    AcceptLoss,
    AcceptLossReply,
    AlterTopic,
    AlterTopicReply,
    ChangeVoters,
    ChangeVotersReply,
    CreateTopic,
    CreateTopicReply,
    DeleteTopic,
    DeleteTopicReply,
    DrainNode,
    DrainNodeReply,
    InitProducer,
    InitProducerReply,
    Metadata,
    MetadataReply,
    MovePartitions,
    MovePartitionsReply,
    Node,
    Partition,
    Reply,
    Topic,
)
from zbroker.protocol.peers import ControllerRequest, GrantProducerIds
from zbroker.topics import is_internal

ADMIN_MS = 10_000
"""How long a client's request waits for the controller before its outcome is unknown."""
OPENING_MS = 5_000
"""How long it then waits for the partitions led here to take records."""

TopicReply = (
    type[CreateTopicReply]
    | type[AlterTopicReply]
    | type[MovePartitionsReply]
    | type[AcceptLossReply]
)


class _Opening(msgspec.Struct):
    """Somebody who waits until a topic's partitions take records here."""

    to: Conversation
    name: str
    topic_id: str
    reply: TopicReply
    deadline: int


class _Deleted(msgspec.Struct):
    """What the controller says of a deletion."""

    topic_id: str


class _Block(msgspec.Struct):
    """What the controller says of a grant of producer ids."""

    first: Annotated[int, msgspec.Meta(ge=0, le=2**62)]
    count: Annotated[int, msgspec.Meta(ge=1, le=2**31)]


Result = TypeVar("Result", _Deleted, _Block)


def _found(answer: Answer, kind: type[Result]) -> Result:
    """The controller's result, which may be anything that a peer says.

    Raises:
        InternalError: it is not what was asked for.
    """
    try:
        return msgspec.convert(answer.result, kind)
    except msgspec.ValidationError as error:
        raise InternalError(f"the controller's answer makes no sense: {error}") from None


class AdminDesk:
    """Takes clients' requests about the cluster from request to reply."""

    def __init__(
        self,
        node: str,
        metadata: MetadataPartition,
        petitions: Petitions,
        keeper: Keeper,
        reply: Replier,
        fresh_id: FreshId,
    ) -> None:
        self._node = node
        self._metadata = metadata
        self._petitions = petitions
        self._keeper = keeper
        self._reply = reply
        self._fresh_id = fresh_id
        self._opening: list[_Opening] = []
        self._producer_ids = range(0)

    # What is known ---

    def describe(self, to: Conversation, request: Metadata) -> None:
        """Answers with the cluster, and the topics asked for."""
        state = self._metadata.metadata
        if request.topics is None:
            topics = [
                describe_topic(state, topic)
                for topic in state.topics.values()
                if request.internal or not is_internal(topic.name)
            ]
        else:
            topics = [self._named(name) for name in dict.fromkeys(request.topics)]
        reply = MetadataReply(
            id=to.id, cluster=state.cluster_id or "", cluster_name=state.cluster_name,
            version=self._metadata.applied - 1, controller=self._metadata.leader, topics=topics,
            nodes=[
                Node(
                    name=node.node, host=node.host, port=node.port, rack=node.rack,
                    alive=state.is_up(node.node), voter=node.node in state.voters,
                    drained=node.node in state.drained,
                )
                for node in state.nodes.values()
            ],
        )  # fmt: skip
        self._reply(to, reply)

    def _named(self, name: str) -> Topic:
        topic = self._metadata.metadata.topic_named(name)
        if topic is None:
            return Topic(name=name, error=UnknownTopic.code)
        return describe_topic(self._metadata.metadata, topic)

    # What the controller decides ---

    def create_topic(self, to: Conversation, request: CreateTopic, now: int) -> None:
        """Makes a topic; answers once its partitions here take records."""
        request.request_id = request.request_id or self._fresh_id()
        self._change(to, request, request.name, CreateTopicReply, now)

    def alter_topic(self, to: Conversation, request: AlterTopic, now: int) -> None:
        """Changes a topic; answers once new partitions here take records."""
        self._change(to, request, request.name, AlterTopicReply, now)

    def move_partitions(self, to: Conversation, request: MovePartitions, now: int) -> None:
        """Gives partitions other replicas; answers once that is committed."""
        self._change(to, request, request.name, MovePartitionsReply, now)

    def accept_loss(self, to: Conversation, request: AcceptLoss, now: int) -> None:
        """Gives up what nobody who is up has; answers once another replica leads."""
        topic = controller.find_topic(self._metadata.metadata, request.topic, request.topic_id)
        self._change(to, request, topic.name, AcceptLossReply, now)

    def delete_topic(self, to: Conversation, request: DeleteTopic, now: int) -> None:
        """Deletes a topic; answers once that cannot be undone."""
        request.request_id = request.request_id or self._fresh_id()

        def done(answer: Answer) -> Reply:
            return DeleteTopicReply(id=to.id, topic_id=_found(answer, _Deleted).topic_id)

        self._ask(to, request, done, now)

    def drain_node(self, to: Conversation, request: DrainNode, now: int) -> None:
        """Takes a node's leaderships away; answers with what nobody else can lead."""

        def done(_: Answer) -> Reply:
            topics = self._metadata.metadata.topics.values()
            leading = sum(
                partition.leader == request.node
                for topic in topics
                for partition in topic.partitions
            )
            return DrainNodeReply(id=to.id, leading=leading)

        self._ask(to, request, done, now)

    def change_voters(self, to: Conversation, request: ChangeVoters, now: int) -> None:
        """Changes who votes; answers once that is committed."""

        def done(_: Answer) -> Reply:
            return ChangeVotersReply(id=to.id, voters=sorted(self._metadata.metadata.voters))

        self._ask(to, request, done, now)

    def init_producer(self, to: Conversation, _: InitProducer, now: int) -> None:
        """Gives a producer id out of this node's block, or of the next."""
        if self._producer_ids:
            self._reply(to, self._next_producer_id(to))
            return

        def granted(answer: Answer) -> Reply:
            block = _found(answer, _Block)
            self._producer_ids = self._producer_ids or range(block.first, block.first + block.count)
            return self._next_producer_id(to)

        self._ask(to, GrantProducerIds(), granted, now)

    def _next_producer_id(self, to: Conversation) -> InitProducerReply:
        number, self._producer_ids = self._producer_ids[0], self._producer_ids[1:]
        return InitProducerReply(id=to.id, producer_id=number, producer_epoch=0)

    def _ask(
        self,
        to: Conversation,
        request: ControllerRequest,
        make_reply: Callable[[Answer], Reply],
        now: int,
    ) -> None:
        def done(answer: Answer) -> None:
            if answer.error is not None:
                self._refuse(to, answer.error)
                return
            try:
                reply = make_reply(answer)
            except ZBrokerError as error:
                self._refuse(to, error)
            else:
                self._reply(to, reply)

        self._petitions.ask(request, done, now, timeout=ADMIN_MS)

    def _change(
        self,
        to: Conversation,
        request: CreateTopic | AlterTopic | MovePartitions | AcceptLoss,
        name: str,
        reply: TopicReply,
        now: int,
    ) -> None:
        def done(answer: Answer) -> None:
            topic = self._metadata.metadata.topic_named(name)
            if answer.error is not None:
                self._refuse(to, answer.error)
            elif topic is None:
                self._refuse(to, UnknownTopic(f"topic {name!r} was deleted in the meantime"))
            else:
                waiting = _Opening(to, name, topic.topic_id, reply, now + ADMIN_MS + OPENING_MS)
                self._opening.append(waiting)
                self.look(now)

        self._petitions.ask(request, done, now, timeout=ADMIN_MS)

    # Who waits for partitions to take records here ---

    def look(self, now: int) -> None:
        """Partitions or metadata changed, or time passed: answers whoever waited for that."""
        if not self._opening:
            return
        waiting, self._opening = self._opening, []
        for each in waiting:
            topic = self._metadata.metadata.topics.get(each.topic_id)
            if topic is None:
                self._refuse(each.to, UnknownTopic(f"topic {each.name!r} was deleted"))
            elif now < each.deadline and self._is_opening(topic):
                self._opening.append(each)
            else:
                self._reply(
                    each.to,
                    each.reply(id=each.to.id, topic=describe_topic(self._metadata.metadata, topic)),
                )

    def _is_opening(self, topic: TopicState) -> bool:
        for number, state in enumerate(topic.partitions):
            if state.leader == self._node:
                partition = self._keeper.find(topic.topic_id, number)
                if partition is None or not (partition.leads or partition.replica.resigned):
                    return True
        return False

    def _refuse(self, to: Conversation, error: ZBrokerError) -> None:
        self._reply(to, wire.error_reply(error, to.id))


def describe_topic(metadata: ClusterMetadata, topic: TopicState) -> Topic:
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
                unclean=state.unclean,
                waiting_for=recovery.waiting_for(metadata, state),
                lost_from=state.lost_from,
            )
            for number, state in enumerate(topic.partitions)
        ],
    )
