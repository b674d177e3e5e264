"""The manifest: one JSONL row per clip. Bad rows are reported with file, row, id and reason and
the others are used; nothing is dropped silently."""

import hashlib
import math
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import RowError, UsageError
from ..reading import is_writable, shown, writable
from ..records import iter_jsonl, row_place
from ..text import tags as tag_text
from ..text.taxonomy import TagRules
from .splits import SPLITS, UNLABELLED, split_of_sentence

_LINES = ("id", "audio", "split", "speaker", "source", "license", "language")
_SPANS = {"words": "word", "events": "tag"}
FIELDS = (*_LINES, "text", *_SPANS)
_NO_LINE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_NO_TEXT = re.compile(r"[\x00-\x08\x0e-\x1b\x7f]")  # control characters except white space


@dataclass(frozen=True)
class ManifestRow:
    """`audio` is resolved against the manifest's folder. `text`: None for an unlabelled clip, which only the split `raft` may
    have. `line`: the row's number (see `iter_jsonl`). `words` and `events` are {word | tag, start_s, end_s}, empty when
    unknown."""

    id: str
    audio: Path
    text: str | None
    split: str
    line: int
    speaker: str | None = None
    source: str | None = None
    license: str | None = None
    language: str | None = None
    words: list[dict] = field(default_factory=list)
    events: list[dict] = field(default_factory=list)


@dataclass(frozen=True)
class Rejected:
    """A row that is not used: its place and the reason. `line`: its number (see `iter_jsonl`)."""

    file: str
    line: int
    id: str | None
    reason: str

    @classmethod
    def of(cls, file: Path | str, line: int, identity: Any, error: RowError) -> "Rejected":
        """The rejection for `error`; it can be written to a file whatever the row contains."""
        name = writable(identity, 200) if isinstance(identity, str) else None
        return cls(writable(str(file)), line, name, writable(str(error)))

    def __str__(self) -> str:
        return f"{row_place(Path(self.file), self.line)}: {self.reason}"


def iter_manifest(path: Path, rules: TagRules, tally: Counter | None = None) -> Iterator[ManifestRow | Rejected]:
    """Every row of the file in order, good or rejected, one at a time: only a hash of each id stays in memory.
    `rules` rename the tags; `tally` counts the changes.

    A row without a split gets one by the hash of its words (80 / 10 / 10), or `raft` if it has no text. Audio is not opened
    here. Raises UsageError if the file does not exist or is empty.
    """
    first_lines: dict[bytes, int] = {}
    rows = 0
    for number, content in _rows(path):
        identity = None
        rows += 1
        try:
            if isinstance(content, RowError):
                raise content
            identity = content.get("id")
            row = _check(content, path.parent, number, rules, tally)
            key = hashlib.blake2b(row.id.encode("utf-8"), digest_size=8).digest()
            if key in first_lines:
                raise RowError(f"duplicate id, first seen in row {first_lines[key]}", fix="give each clip its own id")
            first_lines[key] = number
            yield row
        except RowError as error:
            yield Rejected.of(path, number, identity, error)
    if not rows:
        raise UsageError("the manifest is empty", where=str(path))


def read_manifest(path: Path, rules: TagRules, tally: Counter | None = None) -> tuple[list[ManifestRow], list[Rejected]]:
    """All of `iter_manifest` at once: (good rows, rejected rows)."""
    rows: list[ManifestRow] = []
    rejected: list[Rejected] = []
    for row in iter_manifest(path, rules, tally):
        (rejected if isinstance(row, Rejected) else rows).append(row)
    return rows, rejected


def count_rows(path: Path) -> int:
    """The number of rows, good or not."""
    return sum(1 for _ in _rows(path))


def _rows(path: Path) -> Iterator[tuple[int, dict | RowError]]:
    if not path.exists():
        fix = "make one with: evoxtral data import, or evoxtral data synth"
        raise UsageError("no such manifest", where=str(path), fix=fix)
    return iter_jsonl(path)


def _check(content: dict, folder: Path, line: int, rules: TagRules, tally: Counter | None) -> ManifestRow:
    for name in ("id", "audio"):
        if content.get(name) in (None, "", []) or str(content[name]).isspace():
            raise RowError(f"`{name}` is missing or empty", fix="every row needs id and audio")
    check_fields(content)
    text, split = None, content.get("split") or UNLABELLED
    if has_text(content):
        text = rules.apply(content["text"], tally)
        split = content.get("split") or split_of_sentence(tag_text.strip_tags(text))
    return ManifestRow(
        id=content["id"], audio=folder / content["audio"], text=text, split=split, line=line,
        **{name: content.get(name) or None for name in ("speaker", "source", "license", "language")},
        words=content.get("words") or [], events=rename_events(content.get("events") or [], rules),
    )  # fmt: skip


def has_text(content: dict[str, Any]) -> bool:
    """Whether a row has a transcript: None, "" and white space are none."""
    return bool(str(content.get("text") or "").strip())


def check_fields(content: dict[str, Any]) -> None:
    """Raises RowError for the first unknown field or invalid value, and for a row that needs the text that it lacks. None, "" and
    empty lists of words or events count as absent."""
    for name, value in content.items():
        if name not in FIELDS:
            raise RowError(f"unknown field {shown(name)}", fix=f"known fields: {', '.join(sorted(FIELDS))}")
        if value in (None, "") or (name in _SPANS and value == []):
            continue
        (_check_spans if name in _SPANS else _check_text)(name, value)
        if name == "split" and value not in SPLITS:
            raise RowError(f"unknown split {shown(value)}", fix=f"use one of {', '.join(SPLITS)}")
    if not has_text(content):
        if content.get("split") not in (None, "", UNLABELLED):
            fix = f"write the transcript, or use split {UNLABELLED}: only RAFT can use a clip without text"
            raise RowError(f"`text` is missing or empty, in split {content['split']}", fix=fix)
        for name in _SPANS:
            if content.get(name):
                raise RowError(f"`{name}` without `text`", fix=f"write the transcript, or leave out `{name}`")


def _check_text(name: str, value: Any) -> None:
    if not isinstance(value, str):
        raise RowError(f"`{name}` is {shown(value)}, not text", fix="put it in quotes, or leave it out")
    if not is_writable(value):
        raise RowError(f"`{name}` contains half of a character: {shown(value)}", fix="save the file as UTF-8")
    if control := (_NO_LINE if name in _LINES else _NO_TEXT).search(value):
        raise RowError(f"`{name}` contains the control character {shown(control.group())}", fix="remove it")


def _check_spans(name: str, value: Any) -> None:
    what = _SPANS[name]
    if not isinstance(value, list) or not all(isinstance(entry, dict) for entry in value):
        raise RowError(f"`{name}` is not a list of objects", fix=f"write each as {{{what}, start_s, end_s}}")
    for entry in value:
        _check_text(what, entry.get(what))
        span_of(entry)


def span_of(entry: dict) -> tuple[float, float]:
    """(start_s, end_s) of a word or event. Raises RowError for invalid times."""
    span = entry.get("start_s"), entry.get("end_s")
    if not all(isinstance(time_s, int | float) and not isinstance(time_s, bool) and math.isfinite(time_s) for time_s in span):
        raise RowError(f"bad times of a word or event: {shown(entry)}", fix="give start_s and end_s in seconds")
    if not 0 <= span[0] <= span[1]:
        raise RowError(f"bad times of a word or event: {shown(entry)}", fix="0 ≤ start_s ≤ end_s must hold")
    return float(span[0]), float(span[1])


def rename_events(events: list[dict], rules: TagRules) -> list[dict]:
    """Events renamed like the tags in the text; events of dropped tags are dropped too."""
    renamed = [{**event, "tag": rules.tag_of(event["tag"])} for event in events]
    return [event for event in renamed if event["tag"] is not None]
