"""At most one owner at any time, whatever comes in whatever order; everyone is served once all is well."""

from __future__ import annotations

from groups.world import GROUP, GroupWorld, ScriptedMember, as_plain, check_state
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from zbroker.groups.records import decode
from zbroker.groups.state import State


class Ownership(RuleBasedStateMachine):
    """Members come, go, crash and are slow; requests and replies are late or lost; coordinators fail over."""

    def __init__(self) -> None:
        super().__init__()
        self.topics = {"a": 5, "b": 3}
        self.world = GroupWorld(**self.topics)

    @initialize(count=st.integers(1, 3))
    def begin(self, count: int) -> None:
        for _ in range(count):
            self.world.join("a")

    def pick(self, number: int) -> ScriptedMember:
        alive = [member for member in self.world.members if not member.gone]
        return alive[number % len(alive)]

    def is_anybody_there(self) -> bool:
        return any(not member.gone for member in self.world.members)

    @precondition(lambda self: sum(not each.gone for each in self.world.members) < 5)
    @rule(both=st.booleans(), instance=st.sampled_from([None, None, "i1", "i2"]))
    def join(self, both: bool, instance: str | None) -> None:
        for member in self.world.members:
            if instance is not None and member.instance == instance:
                member.kill()  # one process at a time has the name
        self.world.join(*(("a", "b") if both else ("a",)), instance=instance)

    @rule(number=st.integers(0, 30), late=st.booleans())
    def deliver(self, number: int, late: bool) -> None:
        channels = [
            channel for member in self.world.members for channel in member.channels
            if channel.requests and (late or channel is member.channel)
        ]  # fmt: skip
        if channels:
            self.world.deliver(channels[number % len(channels)])

    @rule(share=st.integers(0, 3))
    def commit_log(self, share: int) -> None:
        pending = len(self.world.log) - self.world.committed
        self.world.commit_log(self.world.committed + pending * share // 3)

    @precondition(is_anybody_there)
    @rule(number=st.integers(0, 10))
    def receive(self, number: int) -> None:
        self.pick(number).receive()

    @rule()
    def flow(self) -> None:
        """A moment in which all goes well."""
        for member in self.world.members:
            self.world.deliver(member.channel)
        self.world.commit_log()
        for member in self.world.members:
            if not member.gone:
                member.receive()

    @precondition(is_anybody_there)
    @rule(number=st.integers(0, 10))
    def release(self, number: int) -> None:
        self.pick(number).release()

    @precondition(is_anybody_there)
    @rule(number=st.integers(0, 10))
    def give_up_waiting(self, number: int) -> None:
        self.pick(number).reopen()

    @precondition(is_anybody_there)
    @rule(number=st.integers(0, 10), offset=st.integers(0, 99))
    def commit_offsets(self, number: int, offset: int) -> None:
        self.pick(number).commit(offset)

    @precondition(is_anybody_there)
    @rule(number=st.integers(0, 10), restart=st.booleans())
    def leave(self, number: int, restart: bool) -> None:
        member = self.pick(number)
        member.held = set()
        member.heartbeat(epoch=-2 if restart else -1)
        member.kill()

    @precondition(is_anybody_there)
    @rule(number=st.integers(0, 10))
    def crash(self, number: int) -> None:
        self.pick(number).kill()

    @rule(ms=st.sampled_from([1, 100, 100, 1000, 3000, 9000]))
    def time(self, ms: int) -> None:
        for _ in range(max(1, ms // 500)):
            self.world.tick(min(ms, 500))
        for member in self.world.members:
            if not member.gone:
                member.check_session()

    @rule(share=st.integers(0, 2))
    def fail_over(self, share: int) -> None:
        world = self.world
        kept = world.committed + (len(world.log) - world.committed) * share // 2
        world.fail_over(kept)

    @rule(count=st.integers(3, 7), there=st.booleans())
    def change_topics(self, count: int, there: bool) -> None:
        self.topics["a"] = max(self.topics["a"], count)
        self.topics.pop("b", None)
        if there:
            self.topics["b"] = 3
        self.world.set_topics(**self.topics)

    @invariant()
    def nobody_shares(self) -> None:
        self.world.check()

    def teardown(self) -> None:
        world = self.world
        for member in world.members:
            if not member.gone:
                member.reopen()
        world.settle()
        world.check()
        group = world.state.groups.get(GROUP)
        members = {} if group is None else group.members
        owned = sorted(each for member in members.values() for each in member.assigned)
        wanted = {topic for member in members.values() for topic in member.about.topics}
        assert owned == sorted(
            (f"id-{topic}", number)
            for topic in wanted
            for number in range(self.topics.get(topic, 0))
        )
        assert as_plain(world.replay()) == as_plain(world.state)
        state = State()
        for key, value in world.log:  # each beginning of the log, as another node may have it
            state.apply(decode(key, value))
            check_state(state)


Ownership.TestCase.settings = settings(
    max_examples=150, stateful_step_count=80, deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)  # fmt: skip
TestOwnership = Ownership.TestCase
