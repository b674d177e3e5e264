"""The manifest: one JSONL row per clip. Bad rows are reported with file, line, id and reason;
the good ones go on; nothing is dropped silently."""

import json
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import RowError, UsageError
from ..text import tags as tag_text
from .scripts import SPLITS, split_of_sentence

_FIELDS = {"id", "audio", "text", "split", "speaker", "source", "license", "words", "events"}


@dataclass(frozen=True)
class ManifestRow:
    """`audio` is resolved against the manifest's folder. `words` and `events` are
    {word | tag, start_s, end_s}, empty when unknown."""

    id: str
    audio: Path
    text: str
    split: str
    line: int
    speaker: str | None = None
    words: list[dict] = field(default_factory=list)
    events: list[dict] = field(default_factory=list)


@dataclass(frozen=True)
class Rejected:
    """A row that is not used: where it stands and why."""

    file: str
    line: int
    id: str | None
    reason: str


def read_manifest(path: Path, taxonomy: tuple[str, ...]) -> tuple[list[ManifestRow], list[Rejected]]:
    """Good rows and rejected rows; together they are all rows of the file.

    A row without a split is dealt out by the hash of its words (80 / 10 / 10). Audio is not
    opened here. Raises UsageError when there is no such file or nothing in it.
    """
    try:
        lines = path.read_bytes().decode("utf-8").splitlines()
    except FileNotFoundError:
        raise UsageError("no such manifest", where=str(path), fix="make one with: evoxtral data synth") from None
    except (UnicodeDecodeError, IsADirectoryError) as error:
        raise UsageError(f"not a UTF-8 text file: {error}", where=str(path)) from None
    rows, rejected, first_lines = [], [], {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        identity = None
        try:
            content = _parse(line)
            identity = content.get("id")
            row = _check(content, path.parent, number, taxonomy)
            if row.id in first_lines:
                raise RowError(f"duplicate id, first seen in line {first_lines[row.id]}", fix="give each clip its own id")
            first_lines[row.id] = number
            rows.append(row)
        except RowError as error:
            rejected.append(Rejected(str(path), number, identity if isinstance(identity, str) else None, str(error)))
    if not rows and not rejected:
        raise UsageError("the manifest is empty", where=str(path))
    return rows, rejected


def _parse(line: str) -> dict:
    try:
        content = json.loads(line)
    except json.JSONDecodeError as error:
        raise RowError(f"not JSON: {error}") from None
    if not isinstance(content, dict):
        raise RowError("a row is a JSON object")
    return content


def _check(content: dict, folder: Path, line: int, taxonomy: tuple[str, ...]) -> ManifestRow:
    unknown = sorted(set(content) - _FIELDS)
    if unknown:
        raise RowError(f"unknown field {unknown[0]!r}", fix=f"known fields: {', '.join(sorted(_FIELDS))}")
    for name in ("id", "audio", "text"):
        value = content.get(name)
        if not isinstance(value, str) or not value.strip():
            raise RowError(f"`{name}` is missing or empty", fix="every row needs id, audio and text")
    pieces = tag_text.parse(content["text"])
    tag_text.check_known([piece.value for piece in pieces if piece.kind == "tag"], taxonomy)
    split = content.get("split") or split_of_sentence(tag_text.strip_tags(content["text"]))
    if split not in SPLITS:
        raise RowError(f"unknown split {split!r}", fix=f"use one of {', '.join(SPLITS)}")
    for name in ("words", "events"):
        entries = content.get(name) or []
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            what = "word" if name == "words" else "tag"
            raise RowError(f"`{name}` is not a list of objects", fix=f"{{{what}, start_s, end_s}} each")
    return ManifestRow(
        id=content["id"], audio=folder / content["audio"], text=content["text"], split=split, line=line,
        speaker=content.get("speaker"), words=content.get("words") or [], events=content.get("events") or [],
    )  # fmt: skip
