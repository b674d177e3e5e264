"""Typed JSONL rows, the ids that join them, and safe reading and appending."""

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
    """One sampled completion (`candidates.jsonl`). `mean_logprob`: mean over the written tokens, including
    EOS, without temperature; rounded to 4 digits because float rounding depends on the batch.
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
    """`scores.jsonl`: the reward, and the components that it is the weighted sum of. `profile`: the rule that gave it, the same
    for all candidates of a clip; rewards of different profiles cannot be compared."""

    utterance_id: str
    candidate_id: int
    reward: float
    components: dict[str, float]
    profile: str


GREEDY, REFERENCE = -1, -2
"""Candidate ids of completions that were not sampled: the greedy one, and the reference itself."""


@dataclass(frozen=True)
class CuratedRow:
    """`curated.jsonl`: what the adapter will be trained to write for a clip. `candidate_id` REFERENCE marks replay.

    `token_ids` (without EOS) are what is trained on: the candidate's own, as they were sampled, or those of the packed target.
    `target_text` is for readers."""

    utterance_id: str
    candidate_id: int
    target_text: str
    token_ids: list[int]
    reward: float


@dataclass(frozen=True)
class DroppedRow:
    """`dropped.jsonl`: a candidate that is not trained on, and the reason."""

    utterance_id: str
    candidate_id: int
    reward: float
    reason: str


@dataclass(frozen=True)
class PreferencePair:
    """`pairs.jsonl`: a better and a worse answer to one clip, with TRL's field names. `prompt`, `chosen` and `rejected` are
    texts (the prompt is empty: the input is the audio). The `_ids` are the token ids on the model's clock, for TRL's
    preference collator. `profile`: the rule that gave the rewards; see `ScoredCandidate`.

    TRL's trainer does not feed audio to this model; `benchmarks/dpo.py` does."""

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
    profile: str


@dataclass(frozen=True)
class Prediction:
    """`predictions.jsonl`: reference and prediction of one clip, both with tags in brackets.

    If known: `events`, the reference's tags {tag, start_s, end_s}; `written`, the predicted tags {tag, at_s, written_s},
    with the time that each tag refers to and the time at which it was complete; `confidences`, the probability of each
    predicted tag; `speaker`, whose voice it is."""

    id: str
    reference: str
    prediction: str
    events: list[dict] | None = None
    written: list[dict] | None = None
    confidences: list[float] | None = None
    speaker: str | None = None


def iter_jsonl(path: Path) -> Iterator[tuple[int, dict[str, Any] | RowError]]:
    """(row number, row) of a JSONL file, read line by line, or of a JSON array of rows, read at once.

    The number is the line number or the index in the array, from 1. A row that is not an object is yielded as a RowError.
    A byte-order mark is skipped. Raises UsageError if the file does not exist or the array is malformed.
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
    return content if isinstance(content, dict) else RowError("this row is not a JSON object")


def row_place(path: Path, number: int) -> str:
    """Where a row of `iter_jsonl` is: "clips.jsonl:3", or "clips.json, row 3" in an array."""
    return f"{path}, row {number}" if path.is_file() and _holds_array(path) else f"{path}:{number}"


def _holds_array(path: Path) -> bool:
    with path.open("rb") as lines:
        texts = (line.removeprefix(codecs.BOM_UTF8).strip() for line in lines)
        return next(filter(None, texts), b"").startswith(b"[")


def read_jsonl(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """`iter_jsonl` for files in which every row must be good. Raises UsageError with the place of the first bad row."""
    return _all_good(iter_jsonl(path), path)


def read_jsonl_or_stream(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Like `read_jsonl`; also reads standard input and a shell's <(…), which can be read only once."""
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
    """`content` as a `row_type`. Raises RowError for the first field that is not of its declared type."""
    kinds = _kinds_of(row_type)
    for name, value in content.items():
        if isinstance(value, str) and not is_writable(value):
            raise RowError(f"`{name}` is {shown(value)}, which contains a lone surrogate (half a character): remove it")
        if name in kinds and not _fits(value, kinds[name]):
            raise RowError(f"`{name}` is {shown(value)}, not of type {getattr(kinds[name], '__name__', kinds[name])}")
    try:
        return row_type(**content)
    except TypeError as error:
        raise RowError(str(error).replace(f"{row_type.__name__}.__init__() ", "")) from None


def _fits(value: Any, kind: Any) -> bool:
    """Whether a JSON value has the declared type. An integer counts as a float; infinity and NaN do not."""
    if get_origin(kind) is types.UnionType:
        return any(_fits(value, member) for member in get_args(kind))
    if get_origin(kind) is list:
        return isinstance(value, list) and all(_fits(item, get_args(kind)[0]) for item in value)
    if get_origin(kind) is dict:
        return isinstance(value, dict) and all(_fits(item, get_args(kind)[1]) for item in value.values())
    if kind is str:
        return isinstance(value, str) and is_writable(value)
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return isinstance(value, kind) and not (kind is int and isinstance(value, bool))


def dump_row(row: Any) -> str:
    content = row if isinstance(row, dict) else asdict(row)
    return json.dumps(content, ensure_ascii=False, allow_nan=False) + "\n"


class JsonlAppender:
    """Appends whole rows. Opening drops a partial line that a killed process left behind."""

    def __init__(self, path: Path):
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        drop_partial_line(path)
        self._file = path.open("a", encoding="utf-8")

    def append(self, rows: list[Any]) -> None:
        """Write `rows` at once and sync: they are on disk when this returns."""
        self._file.write("".join(map(dump_row, rows)))
        self._file.flush()
        os.fsync(self._file.fileno())

    def __enter__(self) -> "JsonlAppender":
        return self

    def __exit__(self, *_) -> None:
        self._file.close()


def drop_partial_line(path: Path) -> None:
    """Truncate a last line that has no newline."""
    if not path.exists():
        return
    with path.open("r+b") as file:
        size = whole = file.seek(0, os.SEEK_END)
        while whole:  # block by block from the end: the file may be larger than memory
            start = max(whole - _BLOCK_BYTES, 0)
            file.seek(start)
            newline = file.read(whole - start).rfind(b"\n")
            if newline >= 0:
                whole = start + newline + 1
                break
            whole = start
        if whole != size:
            file.truncate(whole)
