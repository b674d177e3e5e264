"""Rows from every shape that a corpus has, one at a time: memory does not grow with the corpus.

jsonl     one object per line, or an array   csv       .csv or .tsv, with a header
folder    audio files, each with a .txt (the transcript) or a .json (an object of columns) of the same name
parquet   a file or a folder of them         dataset   what `datasets` saved with save_to_disk
hub       a dataset's id on the hub, or a folder of the same form; streamed, or downloaded first
"""

import csv
import io
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import soundfile

from ..config.schema import Source
from ..data.audio import encode_flac, to_model_rate
from ..errors import RowError, UsageError
from ..files import write_atomic
from ..records import iter_jsonl

AUDIO_SUFFIXES = (".wav", ".flac", ".mp3", ".ogg", ".opus", ".aiff", ".aif", ".au")
_HAS_A_SCHEMA = ("csv", "parquet", "dataset", "hub")


@dataclass(frozen=True)
class SourceRow:
    """`number` in `file`, from 1. `folder`: what a relative audio path is relative to. `split`: the source's own."""

    file: str
    number: int
    columns: dict[str, Any]
    folder: Path
    split: str | None = None


def read_source(source: Source, audio: str, needed: Iterable[str]) -> Iterator[SourceRow]:
    """All rows, at most `source.max_rows`. `audio`: the column that holds it; `needed`: the columns that must be there.

    Raises UsageError when the source is not there, or a table lacks a needed column.
    """
    readers = {"jsonl": _jsonl, "csv": _csv, "folder": _folder, "parquet": _parquet, "dataset": _saved, "hub": _hub}
    for index, row in enumerate(readers[source.kind](source, audio)):
        if source.max_rows is not None and index >= source.max_rows:
            return
        if index == 0 and source.kind in _HAS_A_SCHEMA:
            absent = [name for name in needed if name not in row.columns]
            if absent:
                raise UsageError(
                    f"has no column {absent[0]!r}",
                    where=row.file,
                    fix=f"its columns are {', '.join(map(repr, row.columns))}: set `columns` in the config accordingly",
                )
        yield row


def _path(source: Source, *, folder: bool | None = None) -> Path:
    path = Path(source.path)
    if not path.exists():
        raise UsageError("no such file or folder", where=source.path, fix="set source.path, relative to where you call from")
    if folder is not None and path.is_dir() != folder:
        expected, found = ("a folder", "a file") if folder else ("a file", "a folder")
        what = f"kind {source.kind} expects {expected}, but this is {found}"
        raise UsageError(what, where=source.path, fix="set source.kind or source.path")
    return path


def _jsonl(source: Source, audio: str) -> Iterator[SourceRow]:
    path = _path(source, folder=False)
    for number, row in iter_jsonl(path):
        yield SourceRow(str(path), number, {"(error)": str(row)} if isinstance(row, RowError) else row, path.parent)


def _csv(source: Source, audio: str) -> Iterator[SourceRow]:
    path = _path(source, folder=False)
    csv.field_size_limit(2**31 - 1)
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = csv.DictReader(file, delimiter="\t" if path.suffix.lower() == ".tsv" else ",", restkey="(no header)", strict=True)
        try:
            for row in rows:
                yield SourceRow(str(path), rows.line_num, row, path.parent)
        except (csv.Error, UnicodeDecodeError) as error:
            raise UsageError(f"not a CSV file in UTF-8: {error}", where=f"{path}:{rows.line_num}") from None


def _folder(source: Source, audio: str) -> Iterator[SourceRow]:
    root = _path(source, folder=True)
    files = [each for each in root.rglob("*") if each.is_file()]
    sounds = sorted(each for each in files if each.suffix.lower() in AUDIO_SUFFIXES)
    alone = {each for each in files if each.suffix.lower() in (".txt", ".json")}
    if not sounds:
        raise UsageError("no audio file in it", where=str(root), fix=f"looked for {', '.join(AUDIO_SUFFIXES)}")
    number = 0
    for number, path in enumerate(sounds, start=1):
        sidecars = [path.with_suffix(suffix) for suffix in (".json", ".txt") if path.with_suffix(suffix).is_file()]
        alone -= set(sidecars)
        columns: dict[str, Any] = {audio: path.relative_to(root).as_posix(), "file": path.relative_to(root).as_posix()}
        if sidecars:
            columns |= _sidecar(sidecars[0])
        yield SourceRow(str(path), number, columns, root)
    for extra, path in enumerate(sorted(alone), start=number + 1):
        yield SourceRow(
            str(path), extra, {"file": path.relative_to(root).as_posix(), "(error)": "there is no audio file of this name"}, root
        )


def _sidecar(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text("utf-8")
        if path.suffix == ".txt":
            return {"text": text.strip()}
        content = json.loads(text)
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        return {"(error)": f"{path.name} cannot be read: {error}"}
    return content if isinstance(content, dict) else {"(error)": f"{path.name} is no JSON object"}


def _parquet(source: Source, audio: str) -> Iterator[SourceRow]:
    import pyarrow
    from pyarrow.parquet import ParquetFile

    path = _path(source)
    files = sorted(path.rglob("*.parquet")) if path.is_dir() else [path]
    if not files:
        raise UsageError("no .parquet file in it", where=str(path))
    for file in files:
        number = 0
        try:
            for batch in ParquetFile(file).iter_batches(batch_size=64):
                for columns in batch.to_pylist():
                    number += 1
                    yield SourceRow(str(file), number, columns, file.parent)
        except pyarrow.ArrowInvalid as error:
            raise UsageError(f"not a Parquet file: {error}", where=str(file)) from None


def _saved(source: Source, audio: str) -> Iterator[SourceRow]:
    from datasets import load_from_disk

    path = _path(source, folder=True)
    try:
        loaded = load_from_disk(path)
    except (FileNotFoundError, ValueError) as error:
        raise UsageError(f"not a dataset saved by `datasets`: {error}", where=str(path)) from None
    yield from _of_datasets(loaded, source, audio, path)


def _hub(source: Source, audio: str) -> Iterator[SourceRow]:
    from datasets import load_dataset

    try:
        loaded = load_dataset(source.path, source.name, revision=source.revision, streaming=source.streaming)
    except RuntimeError as error:  # a loading script: `datasets` runs none since version 4
        raise UsageError(f"cannot be loaded: {error}", where=source.path, fix="use kind parquet on its files") from None
    except (OSError, ValueError) as error:  # not there, not reachable, or another name than its configurations have
        raise UsageError(
            f"cannot be had from the hub: {type(error).__name__}: {' '.join(str(error).split())[:200]}",
            where=source.path,
            fix="check source.path, source.name and the network, or download it and use kind dataset or parquet",
        ) from None
    yield from _of_datasets(loaded, source, audio, Path(source.path))


def _of_datasets(loaded, source: Source, audio: str, path: Path) -> Iterator[SourceRow]:
    from datasets import Audio

    parts = dict(loaded) if isinstance(loaded, dict) else {None: loaded}
    wanted = list(source.splits) if source.splits and None not in parts else list(parts)
    absent = [name for name in wanted if name not in parts]
    if absent:
        raise UsageError(f"has no split {absent[0]!r}", where=str(path), fix=f"its splits: {', '.join(parts)}: set source.splits")
    for name in wanted:
        part = parts[name]
        # The bytes as they are: decoding is this project's own, and needs no further package.
        if part.features is None or isinstance(part.features.get(audio), Audio):
            part = part.cast_column(audio, Audio(decode=False))
        for number, columns in enumerate(part, start=1):
            yield SourceRow(f"{path}[{name}]" if name else str(path), number, columns, path, name)


def place_audio(value: Any, row: SourceRow, output: Path, identity: str) -> Path:
    """The clip's audio file: the source's own where there is one, else written to `output`/audio as it came.

    `value`: a path, bytes, {bytes, path} or {array, sampling_rate}. Raises RowError when there is no audio in it.
    """
    if isinstance(value, dict) and value.get("array") is not None:
        import numpy as np

        samples = np.asarray(value["array"], np.float32)
        samples = samples.mean(axis=0) if samples.ndim == 2 else samples
        path = output / "audio" / f"{file_name(identity)}.flac"
        write_atomic(path, encode_flac(to_model_rate(samples, int(value["sampling_rate"]))))
        return path
    content, name = value, None
    if isinstance(value, dict):
        content, name = value.get("bytes"), value.get("path")
    if isinstance(content, bytes):
        suffix = Path(name).suffix if name and Path(name).suffix.lower() in AUDIO_SUFFIXES else _suffix_of(content)
        path = output / "audio" / f"{file_name(identity)}{suffix.lower()}"
        write_atomic(path, content)
        return path
    name = name or content
    if not isinstance(name, str) or not name.strip():
        raise RowError("there is no audio in this row", fix="set columns.audio")
    path = row.folder / name
    if not path.is_file():
        raise RowError(f"no such audio file: {path}", fix=f"paths are relative to {row.folder}")
    return path


def file_name(identity: str) -> str:
    """An id as the name of a file: "book 1/p. 3" -> "book-1-p.-3"."""
    return re.sub(r"[^\w.-]+", "-", identity).strip("-.") or "clip"


def _suffix_of(content: bytes) -> str:
    try:
        kind = soundfile.info(io.BytesIO(content)).format
    except (soundfile.LibsndfileError, RuntimeError) as error:
        raise RowError(f"audio cannot be read: {error}", fix="is it a whole WAV, FLAC, OGG or MP3 file?") from None
    return f".{kind.lower()}" if f".{kind.lower()}" in AUDIO_SUFFIXES else ".wav"
