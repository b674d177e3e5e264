"""Reads rows from every supported kind of corpus, one at a time: memory does not grow with the corpus.

jsonl     one object per line, or an array   csv       .csv or .tsv, with a header
folder    audio files, each with a .txt (the transcript) or a .json (an object of columns) of the same name
parquet   a file or a folder of them         dataset   what `datasets` saved with save_to_disk
hub       a dataset's id on the hub, or a folder of the same form; streamed, or downloaded first
recordings    a folder of audio files of any length, or one; each is cut at silences, and a segment is a row without text
"""

import csv
import io
import math
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from ..config.data import Source
from ..data.audio import check_samples, encode_flac, to_model_rate
from ..data.recordings import open_recording
from ..data.segments import segments_of
from ..data.splits import SPLITS
from ..errors import RowError, UsageError
from ..files import write_atomic
from ..reading import file_name, is_writable, parse_json, shown, why_not_a_file
from ..records import iter_jsonl
from ..units import SAMPLE_RATE_HZ

AUDIO_SUFFIXES = (".wav", ".flac", ".mp3", ".ogg", ".opus", ".aiff", ".aif", ".au")
CONTAINER_SUFFIXES = (".m4a", ".mp4", ".webm", ".aac")  # of recordings, with the package extra `av`
_HAS_A_SCHEMA = ("csv", "parquet", "dataset", "hub")
_BATCH_BYTES = 64 * 2**20
_BATCH_ROWS = 64
_BOMB_BYTES, _BOMB_FACTOR = 2**30, 100  # a row group above both size and compression ratio is a decompression bomb


@dataclass(frozen=True)
class SourceRow:
    """`number`: the row in `file`, from 1. `folder`: base of relative audio paths. `part`: a name for the file or split, unique
    within the source. `split`: the source's own split."""

    file: str
    number: int
    columns: dict[str, Any]
    folder: Path
    part: str
    split: str | None = None


def read_source(source: Source, audio: str, needed: Iterable[str]) -> Iterator[SourceRow]:
    """All rows, at most `source.max_rows`. `audio`: the audio column; `needed`: the required columns.

    Raises UsageError if the source does not exist, or a table lacks a required column.
    """
    readers = {
        "jsonl": _jsonl, "csv": _csv, "folder": _folder, "parquet": _parquet, "dataset": _saved, "hub": _hub,
        "recordings": _recordings,
    }  # fmt: skip
    checked = source.kind not in _HAS_A_SCHEMA
    for index, row in enumerate(readers[source.kind](source, audio)):
        if source.max_rows is not None and index >= source.max_rows:
            return
        if not checked and "(error)" not in row.columns:
            checked = True
            absent = [name for name in needed if name not in row.columns]
            if absent:
                raise UsageError(
                    f"has no column {absent[0]!r}",
                    where=row.file,
                    fix=f"its columns are {', '.join(map(repr, row.columns))}: set `columns` in the config accordingly",
                )
        yield row


def files_in(folder: Path) -> list[Path]:
    """All regular files in a folder and its subfolders, sorted. Raises UsageError if one cannot be listed."""

    def refuse(error: OSError) -> None:
        raise UsageError(f"cannot be read: {error.strerror}", where=str(error.filename), fix="change its permissions, or move it")

    paths = [Path(place) / name for place, _, names in os.walk(folder, onerror=refuse) for name in names]
    return sorted(path for path in paths if not why_not_a_file(path))


def _path(source: Source, *, folder: bool | None = None) -> Path:
    path = Path(source.path)
    reason = why_not_a_file(path)
    if reason == "does not exist":
        raise UsageError("no such file or folder", where=source.path, fix="set source.path, relative to the current folder")
    is_folder = reason == "is a folder, not a file"
    if reason and not is_folder:
        raise UsageError(reason, where=source.path, fix="set source.path to a file or a folder")
    if folder is not None and is_folder != folder:
        expected, actual = ("a folder", "a file") if folder else ("a file", "a folder")
        what = f"kind {source.kind} expects {expected}, but this is {actual}"
        raise UsageError(what, where=source.path, fix="set source.kind or source.path")
    return path


def _jsonl(source: Source, audio: str) -> Iterator[SourceRow]:
    path = _path(source, folder=False)
    for number, row in iter_jsonl(path):
        yield SourceRow(str(path), number, _error(row) if isinstance(row, RowError) else row, path.parent, path.stem)


def _error(reason: RowError | str) -> dict[str, Any]:
    """The columns of a row that cannot be read."""
    return {"(error)": str(reason)}


def _csv(source: Source, audio: str) -> Iterator[SourceRow]:
    path = _path(source, folder=False)
    csv.field_size_limit(2**31 - 1)
    # Bytes that are not UTF-8 become lone surrogates: only their row is rejected.
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        rows = csv.DictReader(file, delimiter="\t" if path.suffix.lower() == ".tsv" else ",", restkey="(no header)", strict=True)
        try:
            header = rows.fieldnames or []
        except csv.Error as error:
            raise UsageError(f"its header is not CSV: {error}", where=str(path)) from None
        if any("\0" in name or not is_writable(name) for name in header):
            raise UsageError("its header is not UTF-8 text", where=str(path), fix="save the file as UTF-8")
        _require_one_of_each(header, path)
        while True:
            try:
                columns = next(rows, None)
            except csv.Error as error:
                columns = _error(f"not CSV: {error}")
            if columns is None:
                return
            yield SourceRow(str(path), rows.reader.line_num, columns, path.parent, path.stem)


def _require_one_of_each(columns: Iterable[str], path: Path) -> None:
    """Of two columns with one name a row would keep the last."""
    names = list(columns)
    if twice := [name for name in names if names.count(name) > 1]:
        raise UsageError(f"has two columns called {twice[0]!r}", where=str(path), fix="rename one of them")


def _folder(source: Source, audio: str) -> Iterator[SourceRow]:
    root = _path(source, folder=True)
    files = files_in(root)
    sounds = [file for file in files if file.suffix.lower() in AUDIO_SUFFIXES]
    alone = {file for file in files if file.suffix.lower() in (".txt", ".json")}
    if not sounds:
        raise UsageError("contains no audio file", where=str(root), fix=f"supported: {', '.join(AUDIO_SUFFIXES)}")
    number = 0
    for number, path in enumerate(sounds, start=1):
        sidecars = [path.with_suffix(suffix) for suffix in (".json", ".txt") if path.with_suffix(suffix).is_file()]
        alone -= set(sidecars)
        name = path.relative_to(root)
        columns: dict[str, Any] = {audio: name.as_posix(), "file": name.as_posix()}
        if sidecars:
            columns |= _sidecar(sidecars[0])
        yield SourceRow(str(path), number, columns, root, name.with_suffix("").as_posix())
    for extra, path in enumerate(sorted(alone), start=number + 1):
        name = path.relative_to(root)
        columns = {"file": name.as_posix()} | _error("no audio file has this name")
        yield SourceRow(str(path), extra, columns, root, name.with_suffix("").as_posix())


def _sidecar(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text("utf-8-sig")
        if path.suffix == ".txt":
            return {"text": text.strip()}
        content = parse_json(text)
    except (OSError, UnicodeDecodeError, RowError) as error:
        return _error(f"{path.name} cannot be read: {error}")
    return content if isinstance(content, dict) else _error(f"{path.name} is not a JSON object")


def _recordings(source: Source, audio: str) -> Iterator[SourceRow]:
    """A row for each segment, with its samples; a recording that cannot be read further ends with a row that says why."""
    path = _path(source)
    suffixes = (*AUDIO_SUFFIXES, *CONTAINER_SUFFIXES)
    files = [file for file in files_in(path) if file.suffix.lower() in suffixes] if path.is_dir() else [path]
    root = path if path.is_dir() else path.parent
    if not files:
        raise UsageError("contains no audio file", where=str(path), fix=f"supported: {', '.join(suffixes)}")
    same_stem = Counter(file.with_suffix("") for file in files)
    for file in files:
        name, number = file.relative_to(root), 0
        place = {"file": name.as_posix()}
        part = (name.with_suffix("") if same_stem[file.with_suffix("")] == 1 else name).as_posix()  # talk.wav beside talk.m4a
        try:
            for number, segment in enumerate(segments_of(open_recording(file).blocks(), source.cut), start=1):
                columns = place | {audio: {"array": segment.samples, "sampling_rate": SAMPLE_RATE_HZ}}
                yield SourceRow(str(file), number, columns, root, part)
            if not number:
                raise RowError("no sound in it: silence alone", fix="leave it out")
        except RowError as error:
            yield SourceRow(str(file), number + 1, place | _error(error), root, part)


def _parquet(source: Source, audio: str) -> Iterator[SourceRow]:
    """A subfolder named after a split (`train/0000.parquet`) gives its files' split."""
    path = _path(source)
    files = [file for file in files_in(path) if file.suffix == ".parquet"] if path.is_dir() else [path]
    if not files:
        raise UsageError("contains no .parquet file", where=str(path))
    for file in files:
        name = file.relative_to(path) if path.is_dir() else Path(file.name)
        splits = [folder for folder in name.parent.parts if folder in (source.splits or SPLITS)]
        part, split = name.with_suffix("").as_posix(), splits[-1] if splits else None
        for number, columns in enumerate(_parquet_rows(file), start=1):
            yield SourceRow(str(file), number, columns, file.parent, part, split)


def _parquet_rows(file: Path) -> Iterator[dict[str, Any]]:
    """All rows, in batches so small that they fit in memory even if each row is as large as its whole group: Parquet may store
    a value once and repeat it in every row."""
    import pyarrow
    from pyarrow.parquet import ParquetFile

    try:
        with ParquetFile(file, buffer_size=2**20) as table:
            _require_one_of_each(table.schema_arrow.names, file)
            for index in range(table.metadata.num_row_groups):
                size, stored = table.metadata.row_group(index).total_byte_size, file.stat().st_size
                if size > _BOMB_BYTES and size > _BOMB_FACTOR * stored:
                    what = f"{stored:,} bytes expand to {size:,} in one row group"
                    raise UsageError(what, where=str(file), fix="write it again with smaller row groups")
                rows = min(max(_BATCH_BYTES // max(size, 1), 1), _BATCH_ROWS)
                for batch in table.iter_batches(batch_size=rows, row_groups=[index]):
                    for row in range(len(batch)):
                        yield _parquet_row(batch, row)
    except (pyarrow.ArrowException, OSError) as error:
        raise UsageError(f"not a Parquet file: {' '.join(str(error).split())[:200]}", where=str(file)) from None


def _parquet_row(batch, row: int) -> dict[str, Any]:
    try:
        return {name: column[row].as_py() for name, column in zip(batch.schema.names, batch.columns, strict=True)}
    except (ValueError, OverflowError) as error:  # text that is not UTF-8, a date beyond Python's
        return _error(f"contains a value that cannot be read: {error}")


def _saved(source: Source, audio: str) -> Iterator[SourceRow]:
    from datasets import load_from_disk

    path = _path(source, folder=True)
    try:
        loaded = load_from_disk(path)
    except (OSError, ValueError) as error:
        raise UsageError(f"not a dataset saved by `datasets`: {error}", where=str(path)) from None
    yield from _of_datasets(loaded, source, audio, path)


def _hub(source: Source, audio: str) -> Iterator[SourceRow]:
    from datasets import load_dataset

    try:
        loaded = load_dataset(source.path, source.name, revision=source.revision, streaming=source.streaming)
    except RuntimeError as error:  # a loading script; `datasets` has not run these since version 4
        raise UsageError(f"cannot be loaded: {error}", where=source.path, fix="use kind parquet on its files") from None
    except (OSError, ValueError) as error:  # missing, unreachable, or an unknown configuration name
        raise UsageError(
            f"cannot be loaded from the hub: {type(error).__name__}: {' '.join(str(error).split())[:200]}",
            where=source.path,
            fix="check source.path, source.name and the network, or download it and use kind dataset or parquet",
        ) from None
    yield from _of_datasets(loaded, source, audio, Path(source.path))


def _of_datasets(loaded, source: Source, audio: str, path: Path) -> Iterator[SourceRow]:
    import pyarrow
    from datasets import Audio
    from datasets.exceptions import DatasetsError

    parts = dict(loaded) if isinstance(loaded, dict) else {None: loaded}
    names = list(source.splits) if source.splits and None not in parts else list(parts)
    absent = [name for name in names if name not in parts]
    if absent:
        raise UsageError(f"has no split {absent[0]!r}", where=str(path), fix=f"its splits: {', '.join(parts)}: set source.splits")
    for name in names:
        part = parts[name]
        file = f"{path}[{name}]" if name else str(path)
        # Keep the raw bytes: we decode audio ourselves, without further packages.
        if part.features is None or isinstance(part.features.get(audio), Audio):
            part = part.cast_column(audio, Audio(decode=False))
        try:
            for number, columns in enumerate(part, start=1):
                yield SourceRow(file, number, columns, path, name or path.stem, name)
        except (OSError, ValueError, pyarrow.ArrowException, DatasetsError) as error:
            raise UsageError(f"cannot be read: {' '.join(str(error).split())[:200]}", where=file) from None


def place_audio(value: Any, row: SourceRow, output: Path, identity: str) -> Path:
    """The clip's audio file: the source's own if there is one; otherwise a copy of its bytes in `output`/audio.

    `value`: a path, bytes, {bytes, path} or {array, sampling_rate}. Raises RowError if it contains no audio.
    """
    if isinstance(value, dict) and value.get("array") is not None:
        samples = _samples_of(value["array"], value.get("sampling_rate"))
        path = output / "audio" / f"{file_name(identity)}.flac"
        write_atomic(path, encode_flac(samples))
        return path
    content, name = value, None
    if isinstance(value, dict):
        content, name = value.get("bytes"), value.get("path")
    if isinstance(content, bytes) and not content:
        raise RowError("audio is empty: 0 bytes", fix="leave the row out, or give it its audio")
    if isinstance(content, bytes):
        suffix = Path(name).suffix.lower() if isinstance(name, str) else ""
        suffix = suffix if suffix in AUDIO_SUFFIXES else _suffix_of(content)
        path = output / "audio" / f"{file_name(identity)}{suffix}"
        write_atomic(path, content)
        return path
    name = name or content
    if not isinstance(name, str) or not name.strip():
        raise RowError("there is no audio in this row", fix="set columns.audio")
    path = row.folder / name
    reason = why_not_a_file(path)
    if reason in ("does not exist", "is a folder, not a file"):
        raise RowError(f"no such audio file: {path}", fix=f"paths are relative to {row.folder}")
    if reason:
        raise RowError(f"the audio file {reason}: {path}")
    return path


def _samples_of(array: Any, rate_hz: Any) -> np.ndarray:
    """Samples from JSON or Parquet as mono float32 at 16 kHz. Of two axes, the shorter one is the channels."""
    fix = "write one list of samples, or one for each channel"
    if not isinstance(rate_hz, int | float) or isinstance(rate_hz, bool) or not math.isfinite(rate_hz):
        raise RowError(f"`sampling_rate` of the audio is {shown(rate_hz)}", fix="write it beside `array`, in Hz")
    try:
        samples = np.asarray(array, np.float32)
    except (TypeError, ValueError, OverflowError):  # lists of different lengths, or not numbers
        raise RowError("`array` of the audio is not an array of numbers", fix=fix) from None
    if samples.ndim not in (1, 2) or samples.size == 0:
        raise RowError(f"`array` of the audio has shape {samples.shape}", fix=fix)
    check_samples(samples)
    return to_model_rate(samples if samples.ndim == 1 else samples.mean(axis=int(np.argmin(samples.shape))), int(rate_hz))


def _suffix_of(content: bytes) -> str:
    try:
        kind = soundfile.info(io.BytesIO(content)).format
    except soundfile.SoundFileError as error:
        raise RowError(f"audio cannot be read: {error}", fix="is it a whole WAV, FLAC, OGG or MP3 file?") from None
    return f".{kind.lower()}" if f".{kind.lower()}" in AUDIO_SUFFIXES else ".wav"
