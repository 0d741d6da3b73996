"""One run of a simulated cluster from one seed: clients at work while everything goes wrong, then healing, judgement.

Owns the phases and what is asked at the end:

1. a cluster is formed, topics are made, clients begin;
2. faults, as the profile says, for some simulated seconds; `invariants` looks at every step;
3. healing: within `HEAL_SECONDS` every node serves, every partition has its leader and all of its replicas in sync,
   takes a write from everyone, and is read to its end;
4. what clients saw is checked (`history`), and the replicas are compared.
"""

from __future__ import annotations

import gc
import random
import traceback
from collections import Counter
from collections.abc import Callable

import msgspec

from zbroker.broker.partition import folder
from zbroker.errors import DataDamaged, ZBrokerError
from zbroker.protocol import messages
from zbroker.testing.clients import Prober, SimulatedAdmin, SimulatedConsumer, SimulatedProducer
from zbroker.testing.cluster import Machine, SimulatedCluster
from zbroker.testing.faults import PROFILES, Faults, Profile
from zbroker.testing.group_work import GroupWork
from zbroker.testing.history import History, check
from zbroker.testing.invariants import Invariants
from zbroker.testing.rest import differences
from zbroker.testing.timeline import MS, SECOND
from zbroker.topics import is_internal

HEAL_SECONDS = 30.0
"""Simulated seconds within which a healed cluster must be whole again."""

GROUP_SECONDS = 10.0
"""Simulated seconds after which, beyond a session, a healed group has everything read and committed."""

GROUP_SHARE = 0.5
"""How many of the seeds have a consumer group at work."""

SETTLE_SECONDS = 4.0
"""Simulated seconds within which everything that was still on its way has come."""

GARBAGE_AT = 50_000
"""Objects after which unreachable circles are looked for."""
SETTLE_PACE = (100 * MS, 300 * MS)
"""Microseconds between two sends meanwhile."""


class Result(msgspec.Struct):
    """How a run ended.

    Attributes:
        problems: what was wrong; none where all is well.
        seconds: simulated. `steps`: things that happened.
        digest: of everything that happened: equal for equal runs.
        transcript: the last lines of it, or all of them.
        place: where in the code a run was ended, for telling failures apart.
    """

    seed: int
    profile: str
    problems: list[str]
    seconds: float
    steps: int
    digest: str
    faults: dict[str, int]
    checks: dict[str, int]
    outcomes: dict[str, int]
    transcript: list[str]
    place: str = ""


class Simulation:
    """One run. Attributes are there to be looked at once it is over."""

    def __init__(
        self,
        seed: int,
        profile: str | Profile = "mixed",
        *,
        nodes: int | None = None,
        seconds: float | None = None,
        keep: int | None = 400,
        group: bool | None = None,
    ) -> None:
        """
        Args:
            group: whether a consumer group is at work too; by the seed where it is not said.
            nodes: how many; by the seed where it is not said: mostly three, sometimes one or five.
            seconds: how long things go wrong; by the seed where it is not said.
        """
        rng = self.rng = random.Random(f"{seed} simulation")
        chosen = rng.choices((3, 5, 1), (80, 14, 6))[0]
        lasting = rng.uniform(5.0, 12.0)
        self.seconds = lasting if seconds is None else seconds
        self.profile = profile if isinstance(profile, Profile) else PROFILES[profile]
        if self.profile.moves:
            chosen = rng.choice((4, 5))
        self.name = profile if isinstance(profile, str) else "custom"
        self.invariants = Invariants()
        self.cluster = SimulatedCluster(
            seed, nodes or chosen, watch=self.invariants, keep=keep,
            session_timeout=rng.choice((400, 1000, 1000)),
        )  # fmt: skip
        self.faults = Faults(self.cluster, self.profile)
        self.history = History()
        self.topics: dict[str, int] = {}
        self.producers: list[SimulatedProducer] = []
        self.consumers: list[SimulatedConsumer] = []
        self.group: GroupWork | None = None
        by_seed = random.Random(f"{seed} with a group").random() < GROUP_SHARE
        self._with_group = by_seed if group is None else group

    def run(self) -> Result:
        """All phases; what goes wrong becomes part of the result."""
        problems: list[str] = []
        place = ""
        thresholds = gc.get_threshold()
        gc.set_threshold(
            GARBAGE_AT, *thresholds[1:]
        )  # a run makes much, and little of it in circles
        try:
            self._begin()
            self._go_wrong()
            self._heal()
            problems += self._judge()
        except (
            AssertionError,
            ZBrokerError,
            LookupError,
            TypeError,
            ValueError,
            AttributeError,
        ) as error:
            problems.append(f"{type(error).__name__}: {error}")
            place = "".join(traceback.format_exception(error)[-8:])
        finally:
            gc.set_threshold(*thresholds)
        cluster = self.cluster
        return Result(
            seed=cluster.seed, profile=self.name, problems=problems, seconds=cluster.now,
            steps=cluster.timeline.steps, digest=cluster.trace.digest, faults=dict(self.faults.done),
            checks={**self.invariants.checks, **self._group_checks()},
            outcomes=dict(Counter(send.outcome for send in self.history.sends)),
            transcript=list(cluster.trace.lines), place=place,
        )  # fmt: skip

    def _group_checks(self) -> dict[str, int]:
        if self.group is None:
            return {}
        handed = self.group.readership.checks
        return {**self.invariants.groups.checks, "17 handed": handed}

    # Phases ---

    def _begin(self) -> None:
        cluster, rng = self.cluster, self.rng
        cluster.form()
        self.admin = SimulatedAdmin("admin", cluster)
        self._make_topic("a", partitions=rng.choice((1, 2, 3)))
        if self.profile.churn:
            self._make_topic("b", partitions=1)
        elif rng.random() < 0.6 or "always" not in self.profile.fsyncs:
            fsync = rng.choice(self.profile.fsyncs)
            insync = rng.randint(1, min(2, len(cluster.names)))
            more = {"replicas": rng.choice((2, 3))} if self.profile.moves else {}
            self._make_topic("b", partitions=1, fsync=fsync, min_insync=insync, **more)
        self.prober = Prober("probe", cluster, self.history)
        self._tell_prober()
        for number in range(2):
            self.producers.append(
                SimulatedProducer(f"p{number}", cluster, self.history, dict(self.topics))
            )
            consumer = SimulatedConsumer(f"c{number}", cluster, self.history, tuple(self.topics))
            consumer.slow = rng.choice((0.0, 0.3))
            self.consumers.append(consumer)
        if self._with_group:
            self.group = GroupWork(
                cluster, self.invariants.groups, tuple(self.topics), wild=self.name != "calm"
            )

    def _make_topic(self, name: str, **settings: int | str) -> None:
        settings.setdefault("segment_size", self.rng.choice(("2KiB", "8KiB", "1MiB")))
        self.admin.create_topic(name, **settings)
        self.topics[name] = int(settings["partitions"])

    def _tell_prober(self) -> None:
        self.prober.partitions = [
            (topic.name, topic.topic_id, number)
            for topic in self.invariants.metadata.topics.values()
            for number in range(len(topic.partitions))
            if not is_internal(topic.name)
        ]

    def _go_wrong(self) -> None:
        self.cluster.run(0.5)
        self.faults.begin()
        until = self.cluster.now + self.seconds
        if self.profile.churn:
            self._churn(until)
        if self.profile.moves:
            self._move(until)
        if "replace" in self.profile.weights or "harm_metadata" in self.profile.weights:
            self.cluster.timeline.after(SECOND, self._replace_voter)
        self.cluster.run(until - self.cluster.now)
        self.faults.end()

    def _heal(self) -> None:
        cluster = self.cluster
        cluster.trace.note("phase", "healing")
        self._drop_crashes()
        cluster.heal()
        if self.group is not None:
            self.group.calm_down()
        until = cluster.now + HEAL_SECONDS
        self._wait(
            lambda: all(list(map(self._is_whole, cluster.machines.values()))),
            until,
            self._missing,
        )
        self.admin.stop()
        self.prober.probing = False
        for producer in self.producers:
            producer.pace = SETTLE_PACE  # that a whole cluster takes records fast has been seen at the beginning
        cluster.run(SETTLE_SECONDS)
        self.topics = {
            name: count for name, count in self.topics.items() if self._is_worth_waiting_for(name)
        }
        last = []
        for producer in self.producers:
            producer.sending = False
            for topic, partitions in self.topics.items():
                for partition in range(partitions):
                    last.append(producer.put(topic, partition))
            producer.soon()
        self._wait(
            lambda: all(producer.idle for producer in self.producers), until, "producers are done"
        )
        for send in last:
            assert send.outcome == "ok", f"after healing, {send} was not taken"
        drain = SimulatedConsumer("drain", cluster, self.history, tuple(self.topics))
        self.consumers.append(drain)
        for consumer in self.consumers:
            consumer.slow = 0.0
        self._wait(self._all_read, until, self._not_read)
        if self.group is not None:
            session = self.group.session + GROUP_SECONDS
            self._wait(lambda: not self._group_lacks(), cluster.now + session, self._group_lacks)
        cluster.run(1.0)

    def _group_lacks(self) -> str:
        """What the group has not got done."""
        assert self.group is not None
        wanted = {}
        for name in self.topics:
            topic = self.invariants.metadata.topic_named(name)
            assert topic is not None
            for number in range(len(topic.partitions)):
                found = self._bounds(topic.topic_id, number)
                if found is None:
                    return f"{name}/{number} is led by nobody"
                wanted[name, number] = (topic.topic_id, *found)
        excused = [
            name for name, number in wanted
            if self.invariants.ledger(folder(wanted[name, number][0], number)).lost_from is not None
        ]  # fmt: skip
        return self.group.missing(wanted, excused=excused)

    def _bounds(self, topic_id: str, number: int) -> tuple[int, int] | None:
        """Log start and high watermark of a partition, by its leader."""
        for machine in self.cluster.up:
            partition = machine.broker.keeper.find(topic_id, number)
            if partition is not None and partition.serves:
                return partition.log.start_offset, partition.high_watermark
        return None

    def _wait(
        self, condition: Callable[[], bool], until: float, what: str | Callable[[], str]
    ) -> None:
        cluster = self.cluster
        try:
            cluster.run_until(condition, max(until - cluster.now, 0.0))
        except AssertionError as error:
            if not str(error).startswith("not within"):
                raise
            missing = what if isinstance(what, str) else what()
            raise AssertionError(f"20: not healed within {HEAL_SECONDS} s: {missing}") from error

    def _drop_crashes(self) -> None:
        for machine in self.cluster.machines.values():
            machine.disk.crash_at = None

    # What is to be true after healing ---

    def _is_whole(self, machine: Machine) -> bool:
        if machine.process is None:
            self.faults.attend(machine)
            machine.start()  # it failed for what had been wrong with its disk
            return False
        return machine.broker.state == "serving" and not self._wrong_with(machine)

    def _wrong_with(self, machine: Machine) -> str:
        """What of the metadata, as a node has them, is not as it should be."""
        metadata = machine.broker.metadata
        for name in self.cluster.names:
            if not metadata.is_up(name):
                return f"{name} is not up for {machine.name}"
        for topic in metadata.topics.values():
            for number, state in enumerate(topic.partitions):
                whole = state.leader is not None and sorted(state.isr) == sorted(state.replicas)
                whole = whole and state.target is None
                if not whole and not self._is_damaged(topic.topic_id, number):
                    return (
                        f"{topic.name}/{number} has the leader {state.leader} and the ISR {state.isr} of "
                        f"{state.replicas} for {machine.name}"
                    )
        return ""

    def _is_damaged(self, topic_id: str, number: int) -> bool:
        """Whether the only replica of a partition has holes that a power loss left: nobody can fill them."""
        topic = self.invariants.metadata.topics.get(topic_id)
        if topic is None or len(topic.partitions[number].replicas) > 1:
            return False
        if self.invariants.ledger(folder(topic_id, number)).lost_from is None:
            return False
        kept = [machine.broker.keeper.find(topic_id, number) for machine in self.cluster.up]
        return any(each is not None and each.leads and each.log.damaged for each in kept)

    def _is_worth_waiting_for(self, name: str) -> bool:
        """Whether a topic is there, and none of its partitions has holes."""
        topic = self.invariants.metadata.topic_named(name)
        return topic is not None and not any(
            self._is_damaged(topic.topic_id, number) for number in range(len(topic.partitions))
        )

    def _missing(self) -> str:
        wrong = []
        for machine in self.cluster.machines.values():
            if machine.process is None:
                wrong.append(f"{machine.name} is down ({machine.error})")
            elif machine.broker.state != "serving":
                wrong.append(f"{machine.name} is {machine.broker.state}")
            else:
                wrong.append(self._wrong_with(machine))
        return "; ".join(each for each in wrong if each)

    def _ends(self) -> dict[tuple[str, int], int]:
        """Where each partition ends, by its leader."""
        found = {}
        for machine in self.cluster.up:
            for partition in machine.broker.keeper:
                if partition.serves:
                    found[partition.topic, partition.number] = partition.high_watermark
        return found

    def _unread(self) -> list[str]:
        unread = []
        ends = self._ends()
        for topic, partitions in self.topics.items():
            for number in range(partitions):
                for consumer in self.consumers:
                    end = ends.get((topic, number), -1)
                    position = consumer.positions.get((topic, number), 0)  # type: ignore[call-overload]
                    if position != end:
                        unread.append(
                            f"{consumer.name} is at {position} of {end} in {topic}/{number}"
                        )
        return unread

    def _all_read(self) -> bool:
        return not self._unread()

    def _not_read(self) -> str:
        return "; ".join(self._unread())

    def _judge(self) -> list[str]:
        for path, ledger in self.invariants.ledgers.items():
            partition = path.partition("/")[2]
            if partition and partition.split("/")[0] not in self.invariants.metadata.topics:
                self.history.deleted[partition] = 1 << 62
            if ledger.lost_from is not None:
                self.history.excused[partition] = "all its in-sync replicas stopped uncleanly"
                self.history.spared[partition] = ledger.lost_from
        problems = self._differences()
        if self.group is not None:
            problems += self.group.problems()
        problems += check(self.history, drained=True)
        for consumer in self.consumers:
            for error in consumer.errors:
                read_damage = isinstance(error, DataDamaged) and self.faults.harmed is not None
                if not self.history.excused and not read_damage:
                    problems.append(f"{consumer.name} was told: {error}")
        return problems

    def _differences(self) -> list[str]:
        """What is not equal at rest; a cluster is not at rest at once, as leaderships still go to whom they should."""
        damaged = [
            folder(topic.topic_id, number)
            for topic in self.invariants.metadata.topics.values()
            for number in range(len(topic.partitions))
            if self._is_damaged(topic.topic_id, number)
        ]
        for _ in range(20):
            found = differences(self.cluster, damaged)
            if not found:
                break
            self.cluster.run(0.5)
        return found

    # Topics that come and go ---

    def _churn(self, until: float) -> None:
        """Deletes the topic `b` and makes it again under its name, and deletes records of `a`, now and then."""
        numbers = iter(range(1, 1000))

        def later() -> None:
            if self.cluster.now < until and self.faults.active:
                delay = self.rng.uniform(0.3, 3.0)
                self.cluster.timeline.after(int(delay * SECOND), act)

        def act() -> None:
            if not self.faults.active:
                return
            kind = self.rng.choice(("make", "delete", "delete_records"))
            if kind == "make":
                self._ask_for_topic(next(numbers), later)
            elif kind == "delete":
                request = messages.DeleteTopic(name="b", request_id=f"churn {next(numbers)}")
                self.admin.ask(request, lambda _: later(), patience=5.0)
            else:
                self._delete_records(later)

        later()

    # Partitions that move ---

    def _move(self, until: float) -> None:
        """Moves partitions to any nodes, and drains nodes and lets them lead again, now and then."""
        names = self.cluster.names

        def later(_: object = None) -> None:
            if self.cluster.now < until and self.faults.active:
                self.cluster.timeline.after(int(self.rng.uniform(0.1, 2.0) * SECOND), act)

        def act() -> None:
            topics = list(self.invariants.metadata.topics.values())
            if not self.faults.active or not topics:
                return
            topic = self.rng.choice(topics)
            request: messages.Request
            if self.rng.random() < 0.3:
                node, undo = self.rng.choice(names), self.rng.random() < 0.5
                request = messages.DrainNode(node=node, undo=undo)
            elif self.rng.random() < 0.6:
                number = self.rng.randrange(len(topic.partitions))
                to = self.rng.sample(names, topic.settings.replicas)
                request = messages.MovePartitions(
                    name=topic.name, topic_id=topic.topic_id, partition=number, to=to
                )
            else:
                to = self.rng.sample(names, self.rng.randint(topic.settings.replicas, len(names)))
                request = messages.MovePartitions(name=topic.name, topic_id=topic.topic_id, to=to)
            self.cluster.trace.note("operator", f"asks {request!r}")
            self.admin.ask(request, later, patience=3.0)

        later()

    def _replace_voter(self) -> None:
        """Somebody notices that a voter's machine is another one, and says so to the cluster."""
        voter = self.faults.replaced
        if voter is None:
            self.cluster.timeline.after(SECOND, self._replace_voter)
            return
        request = messages.ChangeVoters(node=voter, action="replace", request_id="replace")
        operator = SimulatedAdmin("operator", self.cluster)

        def heard(answer: object) -> None:
            self.cluster.trace.note("operator", f"hears {answer!r}")
            if isinstance(answer, ZBrokerError):  # the new disk has not been heard of yet
                self.cluster.timeline.after(SECOND, lambda: operator.ask(request, heard))

        operator.ask(request, heard)

    def _ask_for_topic(self, number: int, then: Callable[[], None]) -> None:
        request = messages.CreateTopic(
            name="b", settings={"partitions": 1}, request_id=f"churn {number}"
        )

        def made(_: object) -> None:
            self._tell_prober()
            then()

        self.admin.ask(request, made, patience=5.0)

    def _delete_records(self, then: Callable[[], None]) -> None:
        topic = self.invariants.metadata.topic_named("a")
        if topic is None:
            then()
            return
        number = self.rng.randrange(len(topic.partitions))
        state = topic.partitions[number]
        partition = f"{topic.topic_id}/{number}"
        before = self.rng.randint(0, self.invariants.ledger(f"topics/{partition}").end)
        self.history.deleted[partition] = max(self.history.deleted.get(partition, 0), before)
        request = messages.DeleteRecords(
            topic="a", topic_id=topic.topic_id, partition=number, before=before
        )
        self.admin.ask(request, lambda _: then(), patience=2.0, node=state.leader)


def simulate(seed: int, profile: str | Profile = "mixed", **options: object) -> Result:
    """Runs one seed."""
    return Simulation(seed, profile, **options).run()  # type: ignore[arg-type]
