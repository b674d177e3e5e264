"""Reading untrusted input: paths that are not files, JSON with absurd numbers or nesting, text that UTF-8 cannot encode."""

import hashlib
import json
import re
import reprlib
import stat
from pathlib import Path
from typing import Any

from .errors import RowError

_STREAMS = ("/dev/fd", "/proc/self/fd")
_KINDS = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}
_LONGEST_INTEGER = 300  # digits; a float holds up to 308, and Python converts no more than 4,300
_LONGEST_SLUG = 80
_short = reprlib.Repr()
_short.maxstring = _short.maxother = 80


def why_not_a_file(path: Path) -> str | None:
    """Why a path cannot be read as a file, worded to follow its name: "does not exist", "is a pipe, not a file". None if it can.

    Opening a pipe would block until something writes to it, and reading a device may never end.
    """
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return "does not exist"
    except OSError as error:
        return f"cannot be read: {error.strerror or error}"
    except ValueError:  # a lone surrogate or NUL
        return "cannot be read: its name is not valid text"
    return None if stat.S_ISREG(mode) else f"is {_KINDS.get(stat.S_IFMT(mode), 'a device')}, not a file"


def is_open_stream(path: Path) -> bool:
    """Standard input, or the path that a shell passes for <(…). Reading these does end."""
    return str(path) == "/dev/stdin" or str(path.parent) in _STREAMS


def parse_json(text: str) -> Any:
    """Like `json.loads`, but integers beyond a float's range become infinite. Raises RowError if it is not JSON or too deep."""
    try:
        return json.loads(text, parse_int=_integer)
    except json.JSONDecodeError as error:
        raise RowError(f"not JSON: {error}") from None
    except RecursionError:
        raise RowError("the JSON is nested too deeply") from None


def _integer(digits: str) -> int | float:
    return int(digits) if len(digits) <= _LONGEST_INTEGER else float(digits)


def is_writable(text: str) -> bool:
    r"""Whether UTF-8 can encode it. JSON and file names may contain lone surrogates ("\ud83d"), which it cannot."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def writable(text: str, most: int = 1000) -> str:
    """One printable line of at most `most` characters, with lone surrogates and control characters escaped."""
    line = " ".join(text[: most + 1].split()).encode("utf-8", "backslashreplace").decode("utf-8")
    line = "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in line)
    return line if len(line) <= most else line[:most] + "…"


def shown(value: Any) -> str:
    """A value's repr, shortened for an error message."""
    return _short.repr(value)


def file_name(identity: str) -> str:
    """A safe file name (without suffix) for an id: unique per id, at most 97 characters.

    An id that is already safe stays as it is; any other gets "~" and a hash, which no safe id contains:
    "clip-1" -> "clip-1", "book 1/p. 3" -> "book-1-p.-3~8a4b…".
    """
    slug = re.sub(r"[^A-Za-z0-9_.-]+", "-", identity)[:_LONGEST_SLUG].strip("-.")
    if slug == identity:
        return slug
    return f"{slug}~{hashlib.blake2b(identity.encode('utf-8'), digest_size=8).hexdigest()}"
