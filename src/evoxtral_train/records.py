"""Typed JSONL rows, the ids that join them, and reading and appending them safely."""

import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from .errors import UsageError

RowT = TypeVar("RowT")


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
    """`curated.jsonl`: what the adapter will be trained to write for a clip; `candidate_id` REFERENCE is replay."""

    utterance_id: str
    candidate_id: int
    target_text: str
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


def read_jsonl(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number from 1, row). Raises UsageError with file and line for anything but objects."""
    try:
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                if not line.strip():
                    continue
                try:
                    row = json.loads(line)
                except json.JSONDecodeError as error:
                    raise UsageError(f"not JSON: {error}", where=f"{path}:{number}") from None
                if not isinstance(row, dict):
                    raise UsageError("a row is a JSON object", where=f"{path}:{number}")
                yield number, row
    except FileNotFoundError:
        raise UsageError("no such file", where=str(path)) from None
    except (UnicodeDecodeError, IsADirectoryError) as error:
        raise UsageError(f"not a UTF-8 text file: {error}", where=str(path)) from None


def read_rows(path: Path, row_type: type[RowT]) -> list[RowT]:
    """Every row as `row_type`. Raises UsageError with file, line and the field that is off."""
    rows = []
    for number, content in read_jsonl(path):
        try:
            rows.append(row_type(**content))
        except TypeError as error:
            message = str(error).replace(f"{row_type.__name__}.__init__() ", "")
            raise UsageError(f"not a {row_type.__name__} row: {message}", where=f"{path}:{number}") from None
    return rows


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
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole != len(content):
        with path.open("r+b") as file:
            file.truncate(whole)
