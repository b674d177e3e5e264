"""Reading untrusted input: paths that are not files, JSON with absurd numbers or nesting, text that UTF-8 cannot encode."""

import hashlib
import json
import re
import reprlib
import stat
from pathlib import Path
from typing import Any

import yaml

from .errors import RowError, UsageError

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
    """Like `json.loads`, but integers beyond a float's range become infinite. Raises RowError if it is not JSON, is nested too
    deeply, or has a key twice in one object: Python would keep the last."""
    try:
        return json.loads(text, parse_int=_integer, object_pairs_hook=_object)
    except json.JSONDecodeError as error:
        raise RowError(f"not JSON: {error}") from None
    except RecursionError:
        raise RowError("the JSON is nested too deeply") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        names = [name for name, _ in pairs]
        raise RowError(f"not JSON: the key {shown(next(name for name in names if names.count(name) > 1))} is there twice")
    return content


def _integer(digits: str) -> int | float:
    return int(digits) if len(digits) <= _LONGEST_INTEGER else float(digits)


class Record(dict):
    """A mapping from a file that a run wrote about itself. A key that it lacks, at any depth, is an error that names the file."""

    def __init__(self, content: dict, path: Path):
        super().__init__({key: _as_record(value, path) for key, value in content.items()})
        self._path = path

    def __missing__(self, key: str):
        raise _edited(self._path, f"`{key}` is missing")


def read_record(path: Path) -> Record:
    """What a run wrote about itself, as JSON or YAML. Somebody may have edited it since: raises UsageError when it is gone,
    cannot be read or is no mapping, and later when a stage asks it for a key that it lacks."""
    try:
        text = path.read_text("utf-8")
        content = yaml.safe_load(text) if path.suffix == ".yaml" else parse_json(text)
    except (OSError, ValueError, RecursionError, yaml.YAMLError, RowError) as error:
        raise _edited(path, "it is missing" if isinstance(error, FileNotFoundError) else writable(str(error), 200)) from None
    if not isinstance(content, dict):
        raise _edited(path, "it holds no keys")
    return Record(content, path)


def _as_record(value: Any, path: Path) -> Any:
    if isinstance(value, list):
        return [_as_record(each, path) for each in value]
    return Record(value, path) if isinstance(value, dict) else value


def _edited(path: Path, what: str) -> UsageError:
    fix = "put it back as the run wrote it, or do that run again with --overwrite"
    return UsageError(f"this record of a run was edited or damaged: {what}", where=str(path), fix=fix)


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
