"""Making strings from data and configs safe to show and to share: one line, plain text, no local paths."""

import re
import unicodedata
from pathlib import Path
from typing import Any

# Bidirectional control characters: they can reverse the text after them.
_DIRECTIONS = frozenset("\u200e\u200f\u061c\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
_MARKDOWN = re.compile(r"[\\`*_\[\]<>|~&#$]")
_LINK = re.compile(r"(?<=\w):(?=//)|(?<=www)\.", re.IGNORECASE)
_LIST_ITEM = re.compile(r"^(\d*)([-+=.)])")
_MOST_NAMES = 20


def printable(text: str) -> str:
    r"""Escape what would control a terminal (escape sequences, direction changes) or cannot be encoded (lone surrogates).
    Newlines and tabs stay. "a\x1b[2J" -> "a\\x1b[2J"."""
    return "".join(letter if letter in "\n\t" or not _is_control(letter) else _escape(letter) for letter in text)


def one_line(text: object, most: int | None = None) -> str:
    r"""`printable` on one line, shortened to `most` characters with an ellipsis: "a\n b" -> "a b"."""
    line = printable(" ".join(str(text).split()))
    return line if most is None or len(line) <= most else f"{line[: most - 1]}…"


def escape_markdown(text: object) -> str:
    """The text as one line of Markdown without effect: no heading, link, HTML, emphasis or end of a table cell."""
    line = _LINK.sub(r"\\\g<0>", _MARKDOWN.sub(r"\\\g<0>", one_line(text)))
    return _LIST_ITEM.sub(r"\1\\\2", line)


def code(text: object) -> str:
    """The text as a Markdown code span: "a`b" -> "``a`b``"."""
    line = one_line(text) or " "
    ticks = "`" * (1 + max(map(len, re.findall("`+", line)), default=0))
    room = " " if line.startswith("`") or line.endswith("`") else ""
    return f"{ticks}{room}{line}{room}{ticks}"


def listed(names: list[str]) -> str:
    """ "a, b"; of a long list only the first names: "a, b and 1,985 more"."""
    shown, rest = names[:_MOST_NAMES], len(names) - _MOST_NAMES
    return ", ".join(shown) + (f" and {rest:,} more" if rest > 0 else "")


def without_places(content: Any) -> Any:
    """The same with every local path shortened to its last part: "/home/ann/runs/sft" -> "sft"."""
    if isinstance(content, dict):
        return {key: without_places(value) for key, value in content.items()}
    if isinstance(content, list):
        return [without_places(value) for value in content]
    return Path(content).name if isinstance(content, str) and content.startswith(("/", "~", "file:")) else content


def _is_control(character: str) -> bool:
    return unicodedata.category(character) in ("Cc", "Cs") or character in _DIRECTIONS


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
