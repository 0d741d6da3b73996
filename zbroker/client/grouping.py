"""A consumer's part in its group: what is read, from where, what is committed when, and how partitions are given back.

Owns the way of each partition from being assigned to being released. Pure: it is told the time. Joining and heartbeats
are `membership`'s, repeating commits is `committing`'s, reading is `consuming`'s, and what the application has in hand
is `custody`'s.

A partition:

========= =============================================== =============================================================
stage     means                                           goes on to
========= =============================================== =============================================================
asked     assigned; its committed offset is asked for     read, from there on, or from `start` where there is none
read      its records are handed out                      finishing, when it is revoked
finishing not read any more, but the application has      committing, at the application's next call
          some of it in hand, or wants to hear of it
committing what is done is being committed (automatic     released, when that is answered: the next heartbeat no longer
          commits), or the application's commit is        names it
          on its way
any       the member is out, or leaves                    gone
========= =============================================== =============================================================

Automatic commits cover what is done, never what is in hand: every `commit_interval`, before a release and before
leaving. Where a partition begins without a committed offset is committed at once, so that a member that comes after
this one begins at the same place.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from functools import partial
from math import inf

from zbroker.client.committing import Commit, Commits, Position
from zbroker.client.consuming import ConsumerCore
from zbroker.client.coordinator import Coordinator
from zbroker.client.custody import Custody
from zbroker.client.exchange import Body, Call, Outcome, Retries
from zbroker.client.membership import GroupSettings, Membership, owned_list
from zbroker.client.metadata import Cluster
from zbroker.client.parts import parts_of
from zbroker.client.reading import Reader
from zbroker.client.records import TopicPartition
from zbroker.errors import (
    MemberFenced,
    NotOwned,
    RequestTimedOut,
    UnknownGroup,
    ZBrokerError,
)
from zbroker.protocol import messages

logger = logging.getLogger("zbroker.client")

ATTEMPT = 5.0
"""Seconds that the coordinator has to answer a question."""
LEAVE_TIME = 3.0
"""Seconds that leaving may take for a member whose application makes no call."""


Asked = dict[TopicPartition, tuple[str, int]]
"""Partitions, with their topics' ids and the generations at which they were assigned."""


class Question:
    """A question to the coordinator, repeated until it is answered for good, or its time is up."""

    __slots__ = ("call", "deadline", "done", "message", "retries", "retry_at")

    def __init__(
        self,
        message: messages.FetchOffsets,
        done: Callable[[Outcome, float], None],
        retries: Retries,
        deadline: float = inf,
    ) -> None:
        self.message = message
        self.done = done
        self.deadline = deadline
        self.retries = retries
        self.retry_at = 0.0
        self.call: Call | None = None


class GroupCore:
    """Every decision of one consumer that has to do with its group."""

    def __init__(
        self,
        settings: GroupSettings,
        core: ConsumerCore,
        custody: Custody,
        cluster: Cluster,
        random: Callable[[], float],
        new_id: Callable[[], str],
    ) -> None:
        self.settings = settings
        self.core = core
        self.custody = custody
        self.exchange = core.exchange
        self.coordinator = Coordinator(settings.group, core.exchange, cluster, random)
        self.membership = Membership(settings, self.coordinator, core.exchange, new_id)
        self.membership.on_change = self._on_change
        self.membership.on_out = self._on_out
        self.membership.on_left = self._on_left
        self.commits = Commits(self.membership, self.coordinator, core.exchange, random)
        self.revived = False
        """Whether what was held back may be handed out again."""
        core.started = self._on_started
        self._random = random
        self._questions: list[Question] = []
        self._asking: Asked = {}
        """Assigned partitions whose committed offsets are not being asked for yet."""
        self._commit_at = 0.0
        self._leave: tuple[bool, float] | None = None
        """Leaving is due, once the commits are answered: whether the place is kept, and until when to try."""
        self._left: Callable[[], None] = lambda: None
        self._join_again = False
        self._warned = False
        """Whether it was said that automatic commits fail, and none has succeeded since."""

    # What the application asks for, on the client's thread ---

    def join(self, now: float) -> None:
        """The application calls, and is not in the group."""
        if self._leave is not None or self.membership.state == "leaving":
            self._join_again = True
            return
        self.membership.join(now)
        self._commit_at = now + self.settings.commit_interval

    def on_finished(self, places: list[TopicPartition]) -> None:
        """The application has nothing more in hand of revoked partitions."""
        self._give_back(place for place in places if place in self.membership.releasing)

    def commit(self, commit: Commit) -> None:
        """The application commits."""
        if self.membership.state == "member" and self._leave is None:
            self.commits.submit(commit)
        else:
            commit.done(self.custody.error or NotOwned(
                "this consumer holds no partitions of its group now; it joins by its first poll or iteration"
            ))  # fmt: skip

    def ask_committed(self, done: Callable[[Outcome], None], deadline: float) -> None:
        """The application wants to know what the group has committed."""
        self._ask(None, lambda outcome, _now: done(outcome), deadline)

    def close(self, left: Callable[[], None], *, keep: bool, deadline: float) -> None:
        """Commits what is done and leaves; `left` is called once that is over, at the deadline at last."""
        self._left = left
        if self.membership.state == "away" and self._leave is None:
            left()
            return
        self._depart(None, keep=keep, deadline=deadline)

    # What the thread calls ---

    def step(self, now: float) -> float | None:
        """Does all that is due; answers when it wants to be called again."""
        self._watch_application(now)
        if self._leave is not None and (not self.commits.busy or now >= self._leave[1]):
            (keep, deadline), self._leave = self._leave, None
            self.membership.leave(keep=keep, deadline=deadline)
        if self._asking:
            asked, self._asking = self._asking, {}
            for part in parts_of(asked):
                self._ask(part, partial(self._on_offsets, part), inf)
        if self.membership.state == "member" and now >= self._commit_at:
            self._commit_at = now + self.settings.commit_interval
            if self.settings.auto_commit and not self.commits.busy and self._leave is None:
                self._commit_done(self.membership.held)
        wanted = [self._step_question(question, now) for question in list(self._questions)]
        wanted += [self.commits.step(now), self.membership.step(now)]
        if self.membership.state != "away" or self._questions:
            wanted.append(self.coordinator.step(now))
        if self.coordinator.refused is not None:
            self._refused(now)
        self._move_fence(now)
        wanted += [self._due_idle(), self._leave[1] if self._leave else None]
        if self.membership.state == "member":
            wanted.append(self._commit_at)
            if self.custody.fence_at > now:
                wanted.append(self.custody.fence_at)
        return min((due for due in wanted if due is not None and due < inf), default=None)

    def has_news(self) -> bool:
        """Whether the application is to be woken, though nothing new was read."""
        revived, self.revived = self.revived, False
        return revived or bool(self.custody.events) or self.custody.error is not None

    def stop(self, error: ZBrokerError) -> None:
        """The client's thread ends: whoever waits is told."""
        self.commits.fail_all(error)
        for question in self._questions:
            question.done(error, 0.0)
        self._questions.clear()
        self._left()

    def _move_fence(self, now: float) -> None:
        custody = self.custody
        before = custody.fence_at
        custody.fence_at = self.membership.fence_at if self.membership.state == "member" else -inf
        if custody.suspended(now):
            custody.interrupted = True
        if before <= now < custody.fence_at:
            self.revived = True

    # The application that makes no call ---

    def _due_idle(self) -> float | None:
        idle_since = self.custody.idle_since
        if idle_since is None or self.membership.state not in ("joining", "member"):
            return None
        return idle_since + self.settings.max_poll_interval

    def _watch_application(self, now: float) -> None:
        if self.custody.idle_since is not None and self.custody.iterates_on():
            self.custody.idle_since = now
        due = self._due_idle()
        if due is not None and now >= due and self._leave is None:
            most = self.settings.max_poll_interval
            error = MemberFenced(
                f"the application made no call for {most:g} s (max_poll_interval), so its partitions were given "
                "to others; the next call joins the group again",
                reason="max_poll_interval",
            )  # fmt: skip
            self._depart(error, keep=False, deadline=now + LEAVE_TIME)

    # Partitions come and go ---

    def _on_change(
        self, gained: dict[TopicPartition, str], lost: list[TopicPartition], _now: float
    ) -> None:
        if self._leave is not None:
            return  # it gives all up, after its last commit: it takes nothing more, and releases nothing before
        if gained:
            self.custody.assign(gained)
            self.core.expect(gained)
            owned = self.custody.owned
            self._asking.update(
                (place, (topic_id, owned[place])) for place, topic_id in gained.items()
            )
        if lost:
            for place in lost:
                self._asking.pop(place, None)
                self.core.close(place)
            self._give_back(self.custody.revoke(lost))
            self.core.check_ended()

    def _on_offsets(self, asked: Asked, outcome: Outcome, now: float) -> None:
        """Where the group is in partitions that were assigned: reading begins."""
        owned = self.custody.owned
        asked = {place: one for place, one in asked.items() if owned.get(place) == one[1]}
        if not asked:
            return
        found: dict[TopicPartition, messages.GroupOffset] = {}
        if isinstance(outcome, messages.FetchOffsetsReply):
            found = {TopicPartition(one.topic, one.partition): one for one in outcome.offsets}
        elif not isinstance(outcome, UnknownGroup):
            error = outcome if isinstance(outcome, ZBrokerError) else _unexpected(outcome)
            self._depart(error, keep=False, deadline=now + LEAVE_TIME)
            return
        settings = self.core.settings
        for place, (topic_id, generation) in asked.items():
            committed = found.get(place)
            if committed is not None and committed.offset >= 0:
                self.commits.committed[place] = committed.offset
                self.core.open(place, topic_id, committed.offset, committed.epoch, generation)
            else:
                start = "earliest" if self.core.is_new(place) else settings.start
                self.core.open(place, topic_id, settings.starts.get(place, start), -1, generation)

    def _on_started(self, reader: Reader) -> None:
        """Nothing was committed, and now it is known where the partition begins."""
        if not reader.moved and reader.place in self.custody.owned:
            splice = reader.splice
            self.custody.begin_at(reader.place, Position(splice.position, splice.epoch))
            self._commit_at = 0.0

    def _give_back(self, places: Iterable[TopicPartition]) -> None:
        """Commits what is done of partitions that nobody has in hand, and releases them.

        The application's commits of them are waited for, too: one that is repeated after the partition went and came
        back would put its position back.
        """
        leaving = list(places)
        if not leaving or self._leave is not None:
            return

        def committed(error: ZBrokerError | None) -> None:
            if error is not None:
                logger.warning("positions were not committed before a release: %s", error)
            self.membership.release(leaving)
            for place in leaving:
                self.commits.committed.pop(place, None)

        if not self.settings.auto_commit or not self._commit_done(leaving, committed):
            self.commits.settle(leaving, committed)

    def _commit_done(
        self,
        places: Iterable[TopicPartition],
        done: Callable[[ZBrokerError | None], None] | None = None,
        deadline: float | None = None,
    ) -> bool:
        """Commits what is done of partitions and not committed yet; False where there is nothing of that."""
        committed, positions = self.commits.committed, self.custody.positions()
        found = {
            place: positions[place]
            for place in places
            if place in positions
            and (committed.get(place) != positions[place].offset or self.commits.concern(place))
        }
        if found:
            self.commits.submit(Commit(found, done or self._committed, deadline))
        return bool(found)

    def _committed(self, error: ZBrokerError | None) -> None:
        """An automatic commit has ended: nobody else hears that it failed, unless the member is out."""
        if error is None:
            self._warned = False
        elif not (self._warned or isinstance(error, MemberFenced) or error is self.custody.error):
            self._warned = True
            logger.warning("committing positions of group %s fails: %s", self.settings.group, error)

    # Ends ---

    def _depart(self, error: ZBrokerError | None, *, keep: bool, deadline: float) -> None:
        """Leaves, after the last commit; with an error, the application is told."""
        held = list(self.membership.held)
        if self.settings.auto_commit:
            self._commit_done(held, deadline=deadline)
        self._stop_reading(held)
        self.custody.lose(error, held)
        self._leave = (keep, deadline)

    def _on_left(self) -> None:
        self.commits.fail_all(MemberFenced("this consumer has left its group"))
        left, self._left = self._left, lambda: None
        left()
        if self._join_again:
            self._join_again = False
            self.membership.join(0.0)

    def _on_out(self, error: ZBrokerError, now: float) -> None:
        """The coordinator says that the member is none; what was held is others' by now."""
        custody = self.custody
        if isinstance(error, MemberFenced):
            self._explain(error, now)
        self._stop_reading([*self.core.readers, *custody.owned])
        custody.lose(error, [*custody.owned, *custody.leaving])
        self.commits.fail_all(error)

    def _explain(self, error: MemberFenced, now: float) -> None:
        """Why the member is out, where the coordinator does not say."""
        static = self.settings.instance is not None
        reason = error.details.get("reason")
        if reason is None:
            in_time = now < self.custody.fence_at and not self.custody.leaving
            replaced = static and in_time
            reason = error.details["reason"] = "replaced" if replaced else "session"
        self.custody.final = static and reason == "replaced"

    def _refused(self, now: float) -> None:
        """No node will ever say who coordinates this group."""
        error, self.coordinator.refused = self.coordinator.refused, None
        assert error is not None
        for question in [one for one in self._questions if one.deadline < inf]:
            self._finish(question, error, now)
        if self.membership.state != "away":
            self.membership.drop()
            self._on_out(error, now)
            self._on_left()

    def _stop_reading(self, places: Iterable[TopicPartition]) -> None:
        for place in list(places):
            self.core.close(place)
        self._asking.clear()
        for question in [one for one in self._questions if one.deadline == inf]:
            self._questions.remove(question)
            if question.call is not None:
                self.exchange.abandon(question.call)

    # Questions ---

    def _ask(
        self,
        places: Asked | None,
        done: Callable[[Outcome, float], None],
        deadline: float,
    ) -> None:
        message = messages.FetchOffsets(
            group=self.settings.group,
            partitions=None
            if places is None
            else owned_list({place: topic_id for place, (topic_id, _) in places.items()}),
        )
        self._questions.append(Question(message, done, Retries(self._random), deadline))

    def _step_question(self, question: Question, now: float) -> float | None:
        if now >= question.deadline:
            error = RequestTimedOut("the group's coordinator did not answer in time")
            self._finish(question, error, now)
            return None
        address = self.coordinator.address
        if question.call is not None and address not in (None, question.call.address):
            self.exchange.abandon(question.call)  # there is another coordinator
            question.call = None
        if question.call is None and address is not None:
            if now < question.retry_at:
                return min(question.retry_at, question.deadline)

            def answered(call: Call, outcome: Outcome, _body: Body, at: float) -> None:
                if question.call is call:
                    question.call = None
                    self._answered(question, call, outcome, at)

            question.call = self.exchange.request(
                address, question.message, answered, now=now, timeout=ATTEMPT
            )
        return question.deadline

    def _answered(self, question: Question, call: Call, outcome: Outcome, now: float) -> None:
        if isinstance(outcome, ZBrokerError) and outcome.retriable:
            question.retry_at = now + question.retries.after(outcome)
            self.coordinator.lost(call.address, outcome, now)
            return
        self._finish(question, outcome, now)

    def _finish(self, question: Question, outcome: Outcome, now: float) -> None:
        if question.call is not None:
            self.exchange.abandon(question.call)
        if question in self._questions:
            self._questions.remove(question)
            question.done(outcome, now)


def _unexpected(outcome: Outcome) -> ZBrokerError:
    return ZBrokerError(f"unexpected answer: {outcome!r}")
