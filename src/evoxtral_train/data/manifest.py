"""The manifest: one JSONL row per clip. Bad rows are reported with file, row, id and reason;
the good ones go on; nothing is dropped silently."""

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import RowError, UsageError
from ..records import iter_jsonl, row_place
from ..text import tags as tag_text
from ..text.taxonomy import TagRules
from .splits import SPLITS, split_of_sentence

FIELDS = ("id", "audio", "text", "split", "speaker", "source", "license", "words", "events")


@dataclass(frozen=True)
class ManifestRow:
    """`audio` is resolved against the manifest's folder. `line`: the row's number (see `iter_jsonl`). `words` and
    `events` are {word | tag, start_s, end_s}, empty when unknown."""

    id: str
    audio: Path
    text: str
    split: str
    line: int
    speaker: str | None = None
    source: str | None = None
    license: str | None = None
    words: list[dict] = field(default_factory=list)
    events: list[dict] = field(default_factory=list)


@dataclass(frozen=True)
class Rejected:
    """A row that is not used: where it stands and why. `line`: its number (see `iter_jsonl`)."""

    file: str
    line: int
    id: str | None
    reason: str

    def __str__(self) -> str:
        return f"{row_place(Path(self.file), self.line)}: {self.reason}"


def iter_manifest(path: Path, rules: TagRules, tally: Counter | None = None) -> Iterator[ManifestRow | Rejected]:
    """Every row of the file in order, good or rejected, one at a time: memory does not grow with the file but for
    the ids seen. Tags have the names that `rules` give them; `tally` counts what was done.

    A row without a split is dealt out by the hash of its words (80 / 10 / 10). Audio is not
    opened here. Raises UsageError when there is no such file or nothing in it.
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
            yield Rejected(str(path), number, identity if isinstance(identity, str) else None, str(error))
    if not rows:
        raise UsageError("the manifest is empty", where=str(path))


def read_manifest(path: Path, rules: TagRules, tally: Counter | None = None) -> tuple[list[ManifestRow], list[Rejected]]:
    """All of `iter_manifest` at once: (good rows, rejected rows)."""
    rows: list[ManifestRow] = []
    rejected: list[Rejected] = []
    for each in iter_manifest(path, rules, tally):
        (rejected if isinstance(each, Rejected) else rows).append(each)
    return rows, rejected


def count_rows(path: Path) -> int:
    """How many rows there are to read, good or not."""
    return sum(1 for _ in _rows(path))


def _rows(path: Path) -> Iterator[tuple[int, dict | RowError]]:
    if not path.exists():
        fix = "make one with: evoxtral data import, or evoxtral data synth"
        raise UsageError("no such manifest", where=str(path), fix=fix)
    return iter_jsonl(path)


def _check(content: dict, folder: Path, line: int, rules: TagRules, tally: Counter | None) -> ManifestRow:
    unknown = sorted(set(content) - set(FIELDS))
    if unknown:
        raise RowError(f"unknown field {unknown[0]!r}", fix=f"known fields: {', '.join(sorted(FIELDS))}")
    for name in ("id", "audio", "text"):
        value = content.get(name)
        if not isinstance(value, str) or not value.strip():
            raise RowError(f"`{name}` is missing or empty", fix="every row needs id, audio and text")
    text = rules.apply(content["text"], tally)
    split = content.get("split") or split_of_sentence(tag_text.strip_tags(text))
    if split not in SPLITS:
        raise RowError(f"unknown split {split!r}", fix=f"use one of {', '.join(SPLITS)}")
    for name in ("words", "events"):
        entries = content.get(name) or []
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            what = "word" if name == "words" else "tag"
            raise RowError(f"`{name}` is not a list of objects", fix=f"{{{what}, start_s, end_s}} each")
    return ManifestRow(
        id=content["id"], audio=folder / content["audio"], text=text, split=split, line=line,
        speaker=content.get("speaker"), source=content.get("source"), license=content.get("license"),
        words=content.get("words") or [], events=rename_events(content.get("events") or [], rules),
    )  # fmt: skip


def rename_events(events: list[dict], rules: TagRules) -> list[dict]:
    """Events under the names that their tags have in the text; those of tags that are left out go too."""
    renamed = [{**event, "tag": rules.tag_of(str(event.get("tag", "")))} for event in events]
    return [event for event in renamed if event["tag"] is not None]
