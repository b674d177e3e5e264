"""Strings from data and configs, made safe to show and to hand on: one line, nothing but text, no local paths."""

import re
import unicodedata
from pathlib import Path
from typing import Any

# Explicit directions: they make what follows read backwards.
_DIRECTIONS = frozenset("\u200e\u200f\u061c\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
_MARKDOWN = re.compile(r"[\\`*_\[\]<>|~&#$]")
_LINK = re.compile(r"(?<=\w):(?=//)|(?<=www)\.", re.IGNORECASE)
_LIST_ITEM = re.compile(r"^(\d*)([-+=.)])")
_MOST_NAMES = 20


def printable(text: str) -> str:
    r"""What a terminal would obey (escape sequences, changes of direction) or cannot encode (lone surrogates) as escapes;
    line ends and tabs stay. "a\x1b[2J" -> "a\\x1b[2J"."""
    return "".join(each if each in "\n\t" or not _is_control(each) else _escape(each) for each in text)


def one_line(text: object, most: int | None = None) -> str:
    r"""`printable`, on one line, and cut with an ellipsis after `most` characters: "a\n b" -> "a b"."""
    line = printable(" ".join(str(text).split()))
    return line if most is None or len(line) <= most else f"{line[: most - 1]}…"


def markdown(text: object) -> str:
    """One line of Markdown that reads as the text does: no heading, link, HTML, emphasis or end of a table's cell."""
    line = _LINK.sub(r"\\\g<0>", _MARKDOWN.sub(r"\\\g<0>", one_line(text)))
    return _LIST_ITEM.sub(r"\1\\\2", line)


def code(text: object) -> str:
    """The text as a code span, in which Markdown means nothing: "a`b" -> "``a`b``"."""
    line = one_line(text) or " "
    ticks = "`" * (1 + max(map(len, re.findall("`+", line)), default=0))
    room = " " if line.startswith("`") or line.endswith("`") else ""
    return f"{ticks}{room}{line}{room}{ticks}"


def listed(names: list[str]) -> str:
    """ "a, b", and of many names the first ones: "a, b and 1,985 more"."""
    shown, rest = names[:_MOST_NAMES], len(names) - _MOST_NAMES
    return ", ".join(shown) + (f" and {rest:,} more" if rest > 0 else "")


def without_places(content: Any) -> Any:
    """The same with every path that shows where on this machine something lies cut to the name that it ends with."""
    if isinstance(content, dict):
        return {key: without_places(value) for key, value in content.items()}
    if isinstance(content, list):
        return [without_places(value) for value in content]
    return Path(content).name if isinstance(content, str) and content.startswith(("/", "~", "file:")) else content


def _is_control(character: str) -> bool:
    return unicodedata.category(character) in ("Cc", "Cs") or character in _DIRECTIONS


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
