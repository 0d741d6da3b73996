r"""Control bytes as a terminal may have them.

Pure, and imports nothing but `re`: whatever is said on a terminal goes through here, errors too.
"""

from __future__ import annotations

import re

# Control characters, C0 and C1, line separators, and those that turn the direction of what follows.
_CONTROL = re.compile(
    r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]"
)
_SHORT = {"\t": r"\t", "\n": r"\n", "\r": r"\r", "\0": r"\0"}


def visible(data: bytes) -> bytes:
    r"""Bytes with control characters, and what is not UTF-8, as escapes.

    >>> visible(b"a\x1b[2J\xff\t\xc3\xa9").decode()
    'a\\x1b[2J\\xff\\té'
    """
    return printable(data.decode("utf-8", "backslashreplace")).encode()


def printable(text: str) -> str:
    r"""A text on one line, its control characters as escapes.

    >>> print(printable("two\nlines"))
    two\nlines
    """
    return _CONTROL.sub(_shown, text)


def printable_json(line: bytes) -> bytes:
    r"""JSON whose strings hold no raw control character.

    >>> printable_json(b'"\x7f"')
    b'"\\u007f"'
    """
    return _CONTROL.sub(lambda match: f"\\u{ord(match[0]):04x}", line.decode()).encode()


def _shown(match: re.Match[str]) -> str:
    character = match[0]
    code = ord(character)
    return _SHORT.get(character) or (f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}")
