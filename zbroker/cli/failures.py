"""What went wrong as one sentence that ends in what to do.

Owns the advice that only the command line can give: which command, which option. The errors' own sentences come from
wherever they arose.
"""

from __future__ import annotations

from zbroker import errors
from zbroker.errors import ZBrokerError

ADVICE: dict[type[ZBrokerError], str] = {
    errors.UnknownTopic: (
        "see which there are with `zbroker topic list`, make one with `zbroker topic create`"
    ),
    errors.UnknownPartition: "see which there are with `zbroker topic describe`",
    errors.UnknownGroup: "see which there are with `zbroker group list`",
    errors.TopicExists: "choose another name, or say --if-not-exists",
    errors.ServersUnreachable: (
        "start a node with `zbroker dev`, or name one that runs with --servers HOST:PORT"
    ),
    errors.RequestTimedOut: "try again, or wait longer with --timeout",
    errors.NotReady: "try again in a moment",
    errors.ShuttingDown: "try again in a moment",
    errors.Overloaded: "try again in a moment",
    errors.NotEnoughReplicas: "see which nodes are down with `zbroker cluster status`",
    errors.DeliveryTimeout: "see whether its nodes run with `zbroker cluster status`",
    errors.MessageTooLarge: (
        "allow more with `zbroker topic alter TOPIC --set max_batch=SIZE`, or leave such records out"
    ),
    errors.UnsupportedVersion: "use the same version of zbroker on both sides",
    errors.OffsetOutOfRange: "start with --from earliest or --from latest",
    errors.DataDamaged: "look at what is left with `zbroker log verify`, or start behind it with --from",
    errors.InvalidRecord: "start behind it with --from OFFSET",
    errors.DiskFull: "make room on the node's disk",
    errors.AddressInUse: (
        "stop what listens there, or choose another base port; a node needs it and the three after it"
    ),
    errors.InternalError: "the node's own log says more",
}
"""What to do, by the kind of error; a class that is not here says it in its own sentence."""


def sentence(error: BaseException) -> str:
    """One sentence about an error, with advice where there is some."""
    if isinstance(error, ZBrokerError):
        return advised(error)
    if isinstance(error, OSError):
        return _of_system(error)
    name = type(error).__name__
    return (
        f"this should not happen: {name}: {error}; "
        "run it again with ZBROKER_DEBUG=1 and report what it shows"
    )


def advised(error: ZBrokerError) -> str:
    """A coded error's sentence and what to do about it, each said once."""
    message = str(error).strip().rstrip(".")
    advice = ADVICE.get(type(error), "")
    if not advice or ("; " in message and _says_what_to_do(message)):
        return message
    return f"{message}; {advice}"


def _says_what_to_do(message: str) -> bool:
    """Whether a sentence ends in advice of its own: an imperative behind its last semicolon."""
    last = message.rpartition("; ")[2]
    return last.split(" ", 1)[0] in _IMPERATIVES


_IMPERATIVES = frozenset(
    {"name", "start", "stop", "choose", "change", "try", "give", "create", "make", "use"}
)


def _of_system(error: OSError) -> str:
    reason = error.strerror or str(error) or type(error).__name__
    return f"{error.filename}: {reason}" if error.filename else reason
