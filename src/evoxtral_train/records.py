"""Typed JSONL rows, the ids that join them, and reading and appending them safely."""

import codecs
import json
import math
import os
import types
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from .errors import RowError, UsageError
from .reading import is_open_stream, is_writable, parse_json, shown, why_not_a_file

RowT = TypeVar("RowT")
_kinds_of = cache(get_type_hints)
_BLOCK_BYTES = 1 << 16


@dataclass(frozen=True)
class Candidate:
    """One sampled completion (`candidates.jsonl`). `mean_logprob` is over the written tokens, EOS
    included, under the model without temperature; to 4 digits, since rounding differs with the batch.
    `written`: see `Prediction`."""

    utterance_id: str
    candidate_id: int
    text: str
    token_ids: list[int]
    seed: int
    finish_reason: str  # "eos" or "length"
    mean_logprob: float
    written: list[dict] | None = None


@dataclass(frozen=True)
class ScoredCandidate:
    """`scores.jsonl`: the reward and every component it is the weighted sum of."""

    utterance_id: str
    candidate_id: int
    reward: float
    components: dict[str, float]


GREEDY, REFERENCE = -1, -2
"""Candidate ids of what was not sampled: the greedy completion, and the reference itself."""


@dataclass(frozen=True)
class CuratedRow:
    """`curated.jsonl`: what the adapter will be trained to write for a clip; `candidate_id` REFERENCE is replay.

    `token_ids` (without EOS) are what is trained on: the candidate's own, as they were sampled, or those of the packed target.
    `target_text` is for readers."""

    utterance_id: str
    candidate_id: int
    target_text: str
    token_ids: list[int]
    reward: float


@dataclass(frozen=True)
class DroppedRow:
    """`dropped.jsonl`: a candidate that is not trained on, and why."""

    utterance_id: str
    candidate_id: int
    reward: float
    reason: str


@dataclass(frozen=True)
class PreferencePair:
    """`pairs.jsonl`: a better and a worse answer to one clip, in TRL's names. `prompt`, `chosen` and `rejected` are
    texts (the prompt is empty: the audio is what is asked); the `_ids`, which TRL's preference collator takes, are what
    stands on the model's clock. TRL itself feeds no audio to this model: a trainer has to add it."""

    utterance_id: str
    audio: str
    prompt: str
    chosen: str
    rejected: str
    prompt_ids: list[int]
    chosen_ids: list[int]
    rejected_ids: list[int]
    chosen_reward: float
    rejected_reward: float


@dataclass(frozen=True)
class Prediction:
    """`predictions.jsonl`: reference and prediction of one clip, both with tags in brackets. Where they are
    known, `events` are the reference's tags {tag, start_s, end_s} and `written` the predicted ones
    {tag, at_s, written_s}: the place in the clip that a tag speaks of, and when it was complete. `confidences`:
    the probability of each predicted tag. `speaker`: whose voice it is."""

    id: str
    reference: str
    prediction: str
    events: list[dict] | None = None
    written: list[dict] | None = None
    confidences: list[float] | None = None
    speaker: str | None = None


def iter_jsonl(path: Path) -> Iterator[tuple[int, dict[str, Any] | RowError]]:
    """(row number, row) of a JSONL, one line at a time, or of a file that is one JSON array of rows, read at once.

    The number is the line's, from 1, or the place in the array. A row that is not an object comes as the RowError that
    says why. A byte-order mark is skipped. Raises UsageError when there is no such file, or its array is broken.
    """
    if reason := why_not_a_file(path):
        what = "no such file" if reason == "does not exist" else reason
        raise UsageError(what, where=str(path), fix="write it to a file first" if "pipe" in reason else None)
    return _iter_lines(path)


def _iter_lines(path: Path) -> Iterator[tuple[int, dict[str, Any] | RowError]]:
    try:
        with path.open("rb") as lines:
            begun = False
            for number, line in enumerate(lines, start=1):
                text = line.removeprefix(codecs.BOM_UTF8)
                if not text.strip():
                    continue
                if not begun and text.lstrip().startswith(b"["):
                    yield from enumerate(map(_row, _array(text + lines.read(), path)), start=1)
                    return
                begun = True
                yield number, _row_of_line(text)
    except OSError as error:
        raise UsageError(f"cannot be read: {error.strerror or error}", where=str(path)) from None


def _array(text: bytes, path: Path) -> list[Any]:
    try:
        return parse_json(text.decode("utf-8"))
    except (UnicodeDecodeError, RowError) as error:
        fix = "write one JSON object per line, or one array of them"
        raise UsageError(f"not a JSON array: {str(error).removeprefix('not JSON: ')}", where=str(path), fix=fix) from None


def _row_of_line(text: bytes) -> dict[str, Any] | RowError:
    try:
        return _row(parse_json(text.decode("utf-8")))
    except UnicodeDecodeError:
        return RowError("not UTF-8 text", fix="save the file as UTF-8")
    except RowError as error:
        return error


def _row(content: Any) -> dict[str, Any] | RowError:
    return content if isinstance(content, dict) else RowError("a row is a JSON object")


def row_place(path: Path, number: int) -> str:
    """Where a row of `iter_jsonl` stands: "clips.jsonl:3", or "clips.json, row 3" of an array."""
    return f"{path}, row {number}" if path.is_file() and _holds_array(path) else f"{path}:{number}"


def _holds_array(path: Path) -> bool:
    with path.open("rb") as lines:
        texts = (line.removeprefix(codecs.BOM_UTF8).strip() for line in lines)
        return next(filter(None, texts), b"").startswith(b"[")


def read_jsonl(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """`iter_jsonl` for files whose every row must be good. Raises UsageError with the place of the first that is not."""
    return _all_good(iter_jsonl(path), path)


def read_jsonl_or_stream(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """As `read_jsonl`, also from standard input and from <(…) in a shell, which can be read once."""
    return _all_good(_iter_lines(path) if is_open_stream(path) else iter_jsonl(path), path)


def _all_good(rows: Iterator[tuple[int, dict[str, Any] | RowError]], path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, row in rows:
        if isinstance(row, RowError):
            raise UsageError(str(row), where=row_place(path, number))
        yield number, row


def read_rows(path: Path, row_type: type[RowT]) -> list[RowT]:
    """All of `iter_rows` at once."""
    return list(iter_rows(path, row_type))


def iter_rows(path: Path, row_type: type[RowT]) -> Iterator[RowT]:
    """`read_rows`, one row at a time."""
    for number, content in read_jsonl(path):
        try:
            yield typed_row(row_type, content)
        except RowError as error:
            raise UsageError(f"not a {row_type.__name__} row: {error}", where=row_place(path, number)) from None


def typed_row(row_type: type[RowT], content: dict[str, Any]) -> RowT:
    """A row of `row_type`, each field of the type that the class declares. Raises RowError for the first that is not."""
    kinds = _kinds_of(row_type)
    for name, value in content.items():
        if isinstance(value, str) and not is_writable(value):
            raise RowError(f"`{name}` is {shown(value)}, which holds half a character (a lone surrogate): remove it")
        if name in kinds and not _fits(value, kinds[name]):
            raise RowError(f"`{name}` is {shown(value)}, not of the type {getattr(kinds[name], '__name__', kinds[name])}")
    try:
        return row_type(**content)
    except TypeError as error:
        raise RowError(str(error).replace(f"{row_type.__name__}.__init__() ", "")) from None


def _fits(value: Any, kind: Any) -> bool:
    """Whether a JSON value is of a declared type. A whole number is a float too; one that is not finite is none."""
    if get_origin(kind) is types.UnionType:
        return any(_fits(value, each) for each in get_args(kind))
    if get_origin(kind) is list:
        return isinstance(value, list) and all(_fits(each, get_args(kind)[0]) for each in value)
    if get_origin(kind) is dict:
        return isinstance(value, dict) and all(_fits(each, get_args(kind)[1]) for each in value.values())
    if kind is str:
        return isinstance(value, str) and is_writable(value)
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return isinstance(value, kind) and not (kind is int and isinstance(value, bool))


def dump_row(row: Any) -> str:
    content = row if isinstance(row, dict) else asdict(row)
    return json.dumps(content, ensure_ascii=False, allow_nan=False) + "\n"


class JsonlAppender:
    """Appends whole rows. A line that a killed process left half-written is dropped on opening."""

    def __init__(self, path: Path):
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        drop_partial_line(path)
        self._file = path.open("a", encoding="utf-8")

    def append(self, rows: list[Any]) -> None:
        """All of `rows` in one write; they are on disk when this returns."""
        self._file.write("".join(map(dump_row, rows)))
        self._file.flush()
        os.fsync(self._file.fileno())

    def __enter__(self) -> "JsonlAppender":
        return self

    def __exit__(self, *_) -> None:
        self._file.close()


def drop_partial_line(path: Path) -> None:
    """Cut off a last line that has no line end."""
    if not path.exists():
        return
    with path.open("r+b") as file:
        size = whole = file.seek(0, os.SEEK_END)
        while whole:  # block by block from the end: the file may be larger than memory
            start = max(whole - _BLOCK_BYTES, 0)
            file.seek(start)
            found = file.read(whole - start).rfind(b"\n")
            if found >= 0:
                whole = start + found + 1
                break
            whole = start
        if whole != size:
            file.truncate(whole)
