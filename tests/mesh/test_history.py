"""The checks of what clients saw, on histories made by hand: a good one, and one bad one for each promise."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from zbroker.testing.history import Asked, History, Poll, Send, check

P = "topic/0"


def sent(value: bytes, offset: int, order: int = 0, **fields: object) -> Send:
    """An acknowledged record."""
    given = {"outcome": "ok", "offset": offset, "ended": 1.0, **fields}
    return Send("p", P, value, order or offset + 1, 0.5, **given)  # type: ignore[arg-type]


def polled(
    start: int, *values: bytes, client: str = "c", session: int = 0, behind: int | None = None
) -> Poll:
    """What a reader got, from an offset on."""
    records = list(enumerate(values, start))
    following = start + len(values) if behind is None else behind
    return Poll(client, P, session, start, following, records, 2.0)


def good() -> History:
    """Three records, two readers, and an outcome that nobody knows."""
    return History(
        sends=[
            sent(b"a", 0),
            sent(b"b", 1),
            sent(b"c", 2),
            Send("p", "", b"maybe", 4, 0.6),
            Send("p", "", b"no", 5, 0.7, outcome="fail", error="too_large"),
        ],
        polls=[
            polled(0, b"a", b"b"),
            polled(2, b"c", b"maybe"),
            polled(0, b"a", b"b", b"c", client="d"),
        ],
        asked=[Asked("q", P, "n1", 1.5, 1.6, 4), Asked("q", P, "n1", 0.9, 1.6, 0)],
    )


def test_a_good_history_has_nothing_wrong() -> None:
    assert check(good(), drained=True) == []


def test_an_outcome_that_is_not_known_may_be_seen_or_not() -> None:
    history = good()
    history.polls[1] = polled(2, b"c")
    assert check(history, drained=True) == []


def swap_value(history: History) -> None:
    history.polls[2] = polled(0, b"a", b"maybe", b"c", client="d")


def lose_middle(history: History) -> None:
    history.polls = [Poll("c", P, 0, 0, 3, [(0, b"a"), (2, b"c")], 2.0)]


def lose_end(history: History) -> None:
    history.polls = [polled(0, b"a", b"b")]


def double(history: History) -> None:
    history.polls.append(polled(4, b"a"))


def see_failed(history: History) -> None:
    history.polls.append(polled(4, b"no"))


def see_unsent(history: History) -> None:
    history.polls.append(polled(4, b"who?"))


def see_of_elsewhere(history: History) -> None:
    history.sends.append(Send("p", "other/0", b"x", 9, 0.8))
    history.polls.append(polled(4, b"x"))


def skip(history: History) -> None:
    history.polls[1] = polled(3, b"maybe")


def go_back(history: History) -> None:
    history.polls.append(polled(3, b"maybe"))


def shuffle_within(history: History) -> None:
    history.polls[0] = Poll("c", P, 0, 0, 2, [(1, b"b"), (0, b"a")], 2.0)


def send_out_of_order(history: History) -> None:
    history.sends[0].order, history.sends[1].order = 2, 1


def leave_gap(history: History) -> None:
    history.polls[2] = Poll("d", P, 0, 0, 3, [(0, b"a"), (2, b"c")], 2.0)


def name_stale_end(history: History) -> None:
    history.asked.append(Asked("q", P, "n2", 1.2, 1.3, 2))


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (swap_value, "inconsistent: offset 1 of topic/0 is 'b' for its sender p and 'maybe' for the reader d"),
        (lose_middle, "lost: 'b' of p, acknowledged at offset 1 of topic/0, was polled by nobody, though 2 was"),
        (lose_end, "unseen: 'c' of p, acknowledged at offset 2 of topic/0 at 1.000 s, was never polled"),
        (double, "duplicate: 'a' stands at offset 0 of topic/0 and, for the reader c, at 4"),
        (see_failed, "G1a: 'no' of p failed for certain (too_large), and c polled it at offset 4 of topic/0"),
        (see_unsent, "invented: c polled 'who?' at offset 4 of topic/0"),
        (see_of_elsewhere, "invented: c polled 'x' at offset 4 of topic/0, where nobody sent it (sent to: other/0)"),
        (skip, "poll order: c skipped from 2 to 3 in topic/0"),
        (go_back, "poll order: c went back from 4 to 3 in topic/0"),
        (shuffle_within, "poll order: c polled offset 0 of topic/0 after 1"),
        (send_out_of_order, "send order: p sent 'b' before 'a' to topic/0, and they stand at 1 and 0"),
        (leave_gap, "gap: d (session 0) got offsets 0 and 2 of topic/0 but not 1, which others got"),
        (name_stale_end, "stale end: n2 told q at 1.300 s that topic/0 ends at 2, and offset 2"),
    ],
)  # fmt: skip
def test_a_broken_promise_is_found_and_told(
    spoil: Callable[[History], None], expected: str
) -> None:
    history = good()
    spoil(history)
    problems = check(history, drained=True)
    assert any(problem.startswith(expected) for problem in problems), problems


@pytest.mark.parametrize(
    "spoil", [swap_value, lose_middle, lose_end, double, leave_gap, name_stale_end]
)
def test_what_was_allowed_to_be_lost_is_excused(spoil: Callable[[History], None]) -> None:
    history = good()
    spoil(history)
    history.excused[P] = "the power failed everywhere, and nothing was flushed"
    problems = check(history, drained=True)
    assert not [each for each in problems if not each.startswith("poll order")], problems


def test_what_was_deleted_need_not_be_seen() -> None:
    history = good()
    history.deleted[P] = 2
    history.polls = [polled(2, b"c")]
    assert check(history, drained=True) == []


def test_a_reader_may_skip_what_was_deleted_while_it_read() -> None:
    history = good()
    history.polls.append(polled(0, b"a", client="late"))
    history.polls.append(polled(2, b"c", client="late"))
    skipped = [problem for problem in check(history) if problem.startswith("gap: late")]
    assert skipped
    history.deleted[P] = 2
    assert not [problem for problem in check(history) if problem.startswith("gap: late")]


def test_enough_is_enough() -> None:
    history = History(sends=[sent(b"%d" % number, number) for number in range(50)])
    assert len(check(history, drained=True, most=7)) == 7
