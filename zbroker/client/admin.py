"""`Admin`: topics, partitions, groups and the cluster, from any thread.

The face: it runs a flow (`flows`) by handing its tasks to the client's thread and waiting for their outcomes.
"""

from __future__ import annotations

import datetime
import random
import threading
import weakref
from collections.abc import Callable, Iterable, Mapping
from types import TracebackType
from typing import Any

from zbroker.client import flows, groupflows
from zbroker.client.administering import AdminCore, Task
from zbroker.client.connection import Connection
from zbroker.client.delivery import copied
from zbroker.client.exchange import Body, Exchange, Outcome
from zbroker.client.flows import At, Flow, Result, VoterAction
from zbroker.client.guard import Guarded, check_timeout, option, wait_event
from zbroker.client.metadata import Cluster
from zbroker.client.places import parse_start
from zbroker.client.producer import servers_of
from zbroker.client.records import (
    ClusterDescription,
    GroupDescription,
    GroupSummary,
    OffsetChange,
    TopicDescription,
    TopicPartition,
)
from zbroker.errors import InvalidRequest, ZBrokerError
from zbroker.protocol import messages
from zbroker.units import Address

PATIENCE = 2.0
"""Seconds beyond the timeout after which an answer that the client's thread owes is given up."""


class AdminMachine:
    """The admin core as its thread drives it."""

    def __init__(self, core: AdminCore, cluster: Cluster, exchange: Exchange) -> None:
        self.core = core
        self.cluster = cluster
        self.exchange = exchange

    def step(self, now: float) -> float | None:
        """Decides what is due."""
        wanted = self.core.step(now)
        asks = self.cluster.step(now)
        return wanted if asks is None else asks if wanted is None else min(asks, wanted)

    def on_push(self, _address: Address, _push: messages.Push, _body: Body, _now: float) -> None:
        """An admin client subscribes to nothing."""

    def on_change(self, change: messages.ClusterChange, now: float) -> None:
        """A node announced new metadata."""
        self.cluster.on_change(change, now)

    def after_step(self) -> None:
        """Outcomes have been handed over already."""

    def on_failure(self, error: ZBrokerError) -> None:
        """The thread ends."""
        self.core.fail_all(error)


class AdminBase(Guarded):
    """What the sync and the asyncio admin client share: everything but waiting."""

    def __init__(
        self,
        servers: str | Iterable[str] = "localhost:5550",
        timeout: float = 10.0,
        *,
        client_id: str = "zbroker-admin",
    ) -> None:
        addresses = servers_of(servers)
        check_timeout(timeout)
        super().__init__()
        self._timeout = timeout
        chance = random.Random().random
        exchange = Exchange()
        cluster = Cluster(addresses, exchange, chance, follow=False)
        self._core = AdminCore(exchange, cluster, chance)
        self._connection = connection = Connection(
            AdminMachine(self._core, cluster, exchange), client_id
        )
        self._finalizer = weakref.finalize(self, connection.stop_soon)
        self._finalizer.atexit = False

    def _submit(self, tasks: list[Task], done: Callable[[], None]) -> list[Outcome | None]:
        """Hands tasks over; `done` is called on the client's thread once the last has ended."""
        self._check_open()
        outcomes: list[Outcome | None] = [None] * len(tasks)
        left = len(tasks)

        def ended(index: int, outcome: Outcome) -> None:
            nonlocal left
            outcomes[index] = outcome
            left -= 1
            if not left:
                done()

        for index, task in enumerate(tasks):
            task.done = lambda outcome, index=index: ended(index, outcome)  # type: ignore[misc]
        self._connection.start()

        def submit(now: float) -> None:
            for task in tasks:
                self._core.submit(task, self._timeout, now)

        if not self._connection.post(submit):
            raise self._connection.failure
        return outcomes

    def _stop(self) -> None:
        if self._refusal is None:
            self._refusal = "the admin client was closed"
            self._forget()
            self._finalizer.detach()
            self._connection.stop()

    def _at_exit(self) -> None:
        self._connection.stop_soon()

    def __repr__(self) -> str:
        return f"<{type(self).__name__}{' closed' if self._refusal else ''}>"


class Admin(AdminBase):
    """Looks after topics, consumer groups and the cluster. Thread-safe.

    Args:
        servers: `"host:port"`, several with commas or as a list: any of the cluster's nodes.
        timeout: seconds that each call takes at most.

    Every call raises `ServersUnreachable` when no server answered in time, and the server's error when one refused.
    """

    def create_topic(
        self, name: str, partitions: int | None = None, replicas: int | None = None, **settings: Any
    ) -> TopicDescription:
        """Makes a topic; what is left out is as the cluster's configuration says.

        Args:
            settings: such as `fsync="never"`, `retention="7d"`, `max_batch="1MiB"`; None is without limit.

        Raises:
            TopicExists, InvalidTopic, InvalidSetting
        """
        return self._run(flows.create_topic(name, given(partitions, replicas, settings)))

    def alter_topic(self, name: str, **settings: Any) -> TopicDescription:
        """Changes settings, or gives the topic more partitions (`partitions=`)."""
        return self._run(flows.alter_topic(name, settings))

    def delete_topic(self, name: str) -> None:
        """Deletes a topic and its records."""
        self._run(flows.delete_topic(name))

    def topics(self, *, internal: bool = False) -> list[TopicDescription]:
        """Every topic, by name, without what only leaders know; the system's own are left out unless asked for."""
        return self._run(flows.topics(internal))

    def describe_topic(self, name: str) -> TopicDescription:
        """A topic, with offsets, sizes and rates from its leaders."""
        return self._run(flows.describe_topic(name))

    def cluster(self) -> ClusterDescription:
        """The cluster and its nodes."""
        return self._run(flows.cluster())

    def move_partitions(
        self, name: str, partition: int | None = None, to: Iterable[str] = ()
    ) -> TopicDescription:
        """Gives a topic's partitions other replicas, while it is written and read.

        Returns at once: a partition that is on its way has its old and its new replicas, and loses the old ones when
        the new are in sync. `describe_topic` shows how far that is.

        Args:
            partition: which; None spreads all of them.
            to: names of the nodes that are to keep it, the preferred leader first; of all nodes, if left out.

        Raises:
            UnknownTopic, UnknownPartition, InvalidRequest
        """
        return self._run(flows.move_partitions(name, partition, names_of(to)))

    def accept_loss(self, name: str, partition: int, node: str | None = None) -> TopicDescription:
        """Gives up what nobody who is up has, so that a partition has a leader again; there is no way back.

        For a partition that waits for a node which is gone for good: another replica leads with what it has itself, and
        acknowledged records that it lacks are lost. Consumers that had read further raise `Diverged`.

        Args:
            node: which replica is to lead; the one that has most of those that are up, if left out.

        Raises:
            UnknownTopic, InvalidRequest: it has a leader, or no such replica is up.
        """
        return self._run(flows.accept_loss(name, partition, node))

    def drain(self, node: str, undo: bool = False) -> int:
        """Takes all leaderships from a node, as before its machine is stopped, and keeps them away until `undo`.

        Returns:
            How many partitions it still leads: those that no other node can lead.
        """
        return self._run(flows.drain(node, undo))

    def change_voters(self, node: str, action: VoterAction = "replace") -> tuple[str, ...]:
        """Changes who elects the controller, one node at a time; returns once that is committed.

        Args:
            action: `"add"`, `"remove"`, or `"replace"`: the node is a voter, and its disk is a new one.

        Returns:
            The names of the voters; with `"replace"`, the node is among them again once its new disk has caught up.
        """
        return self._run(flows.change_voters(node, action))

    def delete_records(self, topic: str, partition: int, before: int) -> int:
        """Deletes a partition's records before an offset, at most the high watermark; answers the new log start."""
        return self._run(flows.delete_records(topic, partition, before))

    def offsets(
        self, topic: str, at: Any = "latest", partitions: Iterable[int] | None = None
    ) -> dict[int, int]:
        """An offset of each partition: `"earliest"`, `"latest"` (the high watermark), or the first record's not
        before a `datetime` or `("time", milliseconds)`.
        """
        return self._run(flows.offsets(topic, moment(at), _numbers(partitions)))

    def groups(self) -> list[GroupSummary]:
        """Every consumer group, by name."""
        return self._run(groupflows.groups())

    def describe_group(self, name: str) -> GroupDescription:
        """A consumer group: its coordinator, its members, and its offsets with their lag.

        Raises:
            UnknownGroup
        """
        return self._run(groupflows.describe_group(name))

    def reset_group(
        self, name: str, to: Any, topics: Any = None, *, dry_run: bool = False
    ) -> list[OffsetChange]:
        """Puts a group that has no members elsewhere; offsets beyond a partition's ends become those.

        Args:
            to: `"earliest"`, `"latest"`, an offset, a `datetime`, a `timedelta` (so long ago), `("time",
                milliseconds)`, `("shift", N)` for N offsets further or, below 0, back, or
                `{(topic, partition): offset}`.
            topics: names, or (topic, partition) pairs; all that the group has committed, if left out. The group need
                not exist where they are named.
            dry_run: only tell what would be changed.

        Returns:
            What is changed, of each partition, by topic and partition.

        Raises:
            GroupNotEmpty: it has members; a static one counts until its session ends.
            UnknownGroup, UnknownTopic, UnknownPartition
        """
        return self._run(groupflows.reset_group(name, target(to), places_of(topics), dry_run))

    def delete_offsets(self, name: str, topics: Any) -> list[OffsetChange]:
        """Forgets the offsets of a group without members in topics, or in (topic, partition) pairs."""
        return self._run(groupflows.delete_offsets(name, places_of(topics)))

    def delete_group(self, name: str) -> None:
        """Forgets a group without members, and all its offsets.

        Raises:
            GroupNotEmpty, UnknownGroup
        """
        self._run(groupflows.delete_group(name))

    def _run(self, flow: Flow[Result]) -> Result:
        self._check_open()
        try:
            tasks = next(flow)
            while True:
                outcomes: list[Outcome | None] = []
                if tasks:
                    ended = threading.Event()
                    outcomes = self._submit(tasks, ended.set)
                    if not wait_event(ended, self._timeout + PATIENCE):
                        raise ZBrokerError("the client's thread did not answer")
                tasks = flow.send([one for one in outcomes if one is not None])
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]
        except ZBrokerError as error:
            raise copied(error) from error.__cause__

    def close(self) -> None:
        """Closes at once; a call that waits in another thread raises `ClientClosed`."""
        self._stop()

    def __enter__(self) -> Admin:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:  # fmt: skip
        self.close()


def given(partitions: int | None, replicas: int | None, settings: dict[str, Any]) -> dict[str, Any]:
    """A new topic's settings, those that have a parameter of their own among them."""
    found = dict(settings)
    if partitions is not None:
        found["partitions"] = partitions
    if replicas is not None:
        found["replicas"] = replicas
    return found


def names_of(nodes: Iterable[str]) -> list[str]:
    """Node names; a lone text is an error that is easily made, and would be read as letters."""
    option(not isinstance(nodes, str), f"nodes are a list of names, such as [{nodes!r}]")
    return list(nodes)


def moment(at: Any) -> At:
    """What people write for an offset's meaning."""
    if isinstance(at, datetime.datetime):
        return ("time", max(0, int(at.timestamp() * 1000)))
    if at in ("earliest", "latest"):
        return at  # type: ignore[no-any-return]
    if isinstance(at, tuple) and len(at) == 2 and at[0] == "time" and isinstance(at[1], int):
        return ("time", max(0, at[1]))
    raise InvalidRequest(
        f'an offset is "earliest", "latest", a datetime or ("time", milliseconds), not {at!r}'
    )


def target(to: Any) -> groupflows.To:
    """What people write for where a group is put."""
    if isinstance(to, Mapping):
        for place, offset in to.items():
            option(
                isinstance(place, tuple) and len(place) == 2 and isinstance(offset, int) and offset >= 0,
                f"an offset is (topic, partition): offset from 0 on, not {place!r}: {offset!r}",
            )  # fmt: skip
        option(bool(to), "no offsets were given")
        return to
    if (
        isinstance(to, tuple)
        and len(to) == 2
        and to[0] == "shift"
        and isinstance(to[1], int)
        and not isinstance(to[1], bool)
    ):
        return ("shift", to[1])
    return parse_start(to)


def places_of(topics: Any) -> list[TopicPartition | str] | None:
    """Topics, and (topic, partition) pairs; None for all."""
    if topics is None:
        return None
    found: list[TopicPartition | str] = []
    for one in [topics] if isinstance(topics, str) else topics:
        pair = isinstance(one, tuple) and len(one) == 2 and isinstance(one[1], int)
        option(isinstance(one, str) or pair, f"topics are names or (topic, partition), not {one!r}")
        found.append(one if isinstance(one, str) else TopicPartition(*one))
    option(bool(found), "no topics were given; leave them out for all")
    return found


def _numbers(partitions: Iterable[int] | None) -> list[int] | None:
    if partitions is None:
        return None
    numbers = list(partitions)
    option(
        all(isinstance(one, int) and one >= 0 for one in numbers),
        "partitions are numbers from 0 on",
    )
    return numbers
