"""What a coordinator decides: records, applied as they are made, and answers that rest on them.

Owns the order in which both come. The only place of a coordinator that changes the state.
"""

from __future__ import annotations

from typing import Any

from zbroker.errors import ZBrokerError
from zbroker.groups.records import MemberKey, MemberRecord, MemberValue, Record
from zbroker.groups.state import Group, State
from zbroker.protocol.messages import Reply

Token = Any
"""Whom to answer: the owner's own."""


class Outcome:
    """What was decided since it was last taken.

    Attributes:
        state: what the records are applied to.
        refusal: why nothing can be appended for now.
        events: what happened, for the node's log: names and facts. The owner clears it.
    """

    def __init__(self, state: State) -> None:
        self.state = state
        self.refusal: ZBrokerError | None = None
        self.events: list[tuple[str, dict[str, Any]]] = []
        self._records: list[Record] = []
        self._answers: list[tuple[Token, Reply | ZBrokerError]] = []

    def take(self) -> tuple[list[Record], list[tuple[Token, Reply | ZBrokerError]]]:
        """Records to append, and answers to give once they are committed."""
        decided = self._records, self._answers
        self._records, self._answers = [], []
        return decided

    def must_write(self) -> None:
        """Before a decision that needs records: raises why there can be none."""
        if self.refusal is not None:
            raise self.refusal

    def write(self, record: Record) -> None:
        """One more record: it is true from now on."""
        self._records.append(record)
        self.state.apply(record)

    def write_member(self, group: Group, member: str, value: MemberValue | None) -> None:
        """A member's record; no value: it is out."""
        self.write(MemberRecord(MemberKey(group.name, member), value))

    def tell(self, event: str, **facts: Any) -> None:
        """Something for the node's log."""
        self.events.append((event, facts))

    def answer(self, token: Token, found: Reply | ZBrokerError) -> None:
        """One more answer."""
        self._answers.append((token, found))
