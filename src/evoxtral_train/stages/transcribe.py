"""`evoxtral transcribe`: recordings to tagged transcripts."""

import hashlib
import textwrap
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain, count
from pathlib import Path

from .. import processes
from ..config.transcription import TranscribeConfig
from ..data.recordings import open_recording
from ..errors import RowError, UsageError
from ..files import fingerprint_files, write_atomic
from ..jobs import Job, Work
from ..progress import Progress, format_seconds, progress
from ..reading import is_writable
from ..records import JsonlAppender, iter_rows
from ..run_folders import COMPLETE, FILES
from ..runs import Options
from ..transcription.formats import FORMATS
from ..transcription.transcriber import Transcriber
from ..transcription.transcript import Merge, Transcript
from .report import Report

_RESERVED = {"config.yaml", "run.json", "metrics.json", FILES, COMPLETE, "recordings.jsonl", "failed.jsonl"}
_AUDIO_SUFFIXES = {
    f".{name}"
    for name in (
        "wav", "flac", "ogg", "oga", "opus", "mp3", "aif", "aiff", "aifc", "au", "caf", "w64", "rf64",
        "m4a", "m4b", "mp4", "mov", "webm", "mkv", "mka", "aac", "ac3", "amr", "3gp", "wma",
    )
}  # fmt: skip - looked for in folders; a file that is named is opened whatever its name
_SHOWN_FAILURES, _SHOWN_TEXTS = 10, 3
_STEM_BYTES = 200  # file systems allow names of 255 bytes, suffixes included
_MERGE_SHOWN: dict[Merge, str] = {
    "front": "before each segment's words", "timed": "where they were heard",
    "written": "where the adapter wrote them, among its own words", "none": "beside the text",
}  # fmt: skip


@dataclass(frozen=True)
class Transcribed:
    """`recordings.jsonl`: a recording that is finished. `stem`: its transcripts, below the output, without their suffix.
    `cut_segments`: how many had more to write than `decode.max_new_tokens`."""

    file: str
    stem: str
    duration_s: float
    segments: int
    tags: int
    seconds: float
    cut_segments: int = 0


@dataclass(frozen=True)
class Failed:
    """`failed.jsonl`: a recording that could not be read, and why."""

    file: str
    reason: str


def run(config: TranscribeConfig, options: Options) -> Report:
    """Writes `<name>.<format>` for each recording, `recordings.jsonl` and `failed.jsonl`; without an output, the merged texts are
    the report's table. If a recording cannot be read, the others are still transcribed, and the exit code is 1.
    """
    if not config.recordings:
        fix = "name files, folders or globs: evoxtral transcribe talk.wav"
        raise UsageError("there is nothing to transcribe", where="recordings", fix=fix)
    files = find_recordings(config.recordings)
    transcriber = Transcriber(config)
    facts = {"recordings": len(files), "base": transcriber.model.base}
    if config.adapters:
        facts["adapters"] = ", ".join(map(str, config.adapters))
        facts["tags"] = _MERGE_SHOWN[transcriber.merge]
    if options.dry_run:
        return _plan(config, transcriber, files, options, facts)
    if config.output is None:
        if "txt" not in config.formats:
            what = f"there is no output to write {', '.join(config.formats)} to; only the text is printed"
            raise UsageError(what, where="output", fix="name a folder: --output transcripts")
        return _printed(transcriber, files, facts)
    stems = stems_of(files, config.formats)
    processes.join(config.model.device)
    with _job(config, files, options).shared(_inputs(transcriber, files), [*files, *config.adapters]) as work:
        done = _finished_before(work)
        rows, failed, texts, seconds = _transcribe_files(transcriber, stems, done, work, config)
        summary = processes.first(lambda: _finish(work, stems, config.formats, rows, failed, seconds))
    return _report(config, facts, summary, failed, texts)


def find_recordings(sources: Sequence[str]) -> list[Path]:
    """The files that `sources` name: files, folders (searched for audio, hidden files left out) and globs; each once.

    Raises UsageError for a source that names nothing.
    """
    found: dict[Path, Path] = {}  # by real path
    for source in sources:
        path = Path(source)
        if not source:  # an unset variable in a script; as a path it is the current folder
            raise UsageError("an empty name", where="recordings", fix="use . for the current folder")
        if path.is_dir():
            files = sorted(file for file in path.rglob("*") if _is_audio(file.relative_to(path)) and file.is_file())
        elif path.exists() or not set(source) & set("*?["):
            files = [path]
        else:
            files = _matches(path)
        if not files or not (files[0].exists() or files[0].is_symlink()):
            what = "no audio file in this folder" if path.is_dir() else "no such file"
            raise UsageError(what, where=source, fix="name recordings, folders with recordings, or a glob such as 'talks/*.wav'")
        for file in files:
            if not is_writable(str(file)):
                raise UsageError("this name is not UTF-8, so no file can list it", where=str(file), fix="rename the file")
            found.setdefault(file.resolve(), file)
    return list(found.values())


def _matches(pattern: Path) -> list[Path]:
    """Files, as a shell finds them: hidden ones, and those in hidden folders, only if the pattern names them."""
    try:
        matches = sorted(Path(pattern.anchor).glob(str(pattern.relative_to(pattern.anchor))))
    except ValueError as error:
        raise UsageError(f"not a glob: {error}", where=str(pattern), fix="see 'talks/*.wav' and 'talks/**/*.wav'") from None
    named = {*pattern.parts, ".", ".."}
    return [file for file in matches if file.is_file() and not any(part[0] == "." for part in file.parts if part not in named)]


def _is_audio(path: Path) -> bool:
    return path.suffix.lower() in _AUDIO_SUFFIXES and not any(part.startswith(".") for part in path.parts)


def stems_of(files: Sequence[Path], formats: Sequence[str]) -> dict[Path, str]:
    """file -> the name of its transcripts without their suffix: talk.wav -> "talk". Where two recordings share a name, or it is
    one of the run's own files, each keeps its suffix ("talk.wav", "talk.mp3") or, if that is not enough, its folders; at last
    it gets a number. A very long name is cut."""
    stems = {file: file.stem for file in files}
    for longer in (lambda file: file.name, lambda file: "_".join(part for part in file.parts if part not in ("/", "..", "."))):
        counts = Counter(stem.lower() for stem in stems.values())
        for file, stem in stems.items():
            if counts[stem.lower()] > 1 or any(f"{stem}.{name}".lower() in _RESERVED for name in formats):
                stems[file] = longer(file)
    taken: set[str] = set()
    for file, stem in stems.items():
        short = stem.encode()[:_STEM_BYTES].decode(errors="ignore")
        names = chain([short], (f"{short}_{number}" for number in count(2)))
        stems[file] = next(name for name in names if name.lower() not in taken)
        taken.add(stems[file].lower())
    return stems


def _plan(config: TranscribeConfig, transcriber: Transcriber, files: Sequence[Path], options: Options, facts: dict) -> Report:
    from .plans import plan_decoding, plan_model  # it imports the Trainer, which takes seconds

    durations = [_header_seconds(file) for file in files]
    known = [seconds for seconds in durations if seconds]
    facts["audio"] = format_seconds(sum(known)) + (
        f", and {len(files) - len(known)} files of unknown length" if len(known) < len(files) else ""
    )
    facts |= plan_model(transcriber.model) | plan_decoding(transcriber.model, config.decode.batch_tokens)
    if config.output is not None:
        _job(config, files, options).check(_inputs(transcriber, files))
    return Report("plan: transcribe", facts | {"output": config.output or "printed"})


def _job(config: TranscribeConfig, files: Sequence[Path], options: Options) -> Job:
    settings = config.model_dump(mode="json", exclude={"output"}) | {"recordings": [str(file) for file in files]}
    tracked = config.model_copy(update={"recordings": []})  # their names are nobody else's business
    return Job("transcribe", config.output, settings, tracked, options)


def _inputs(transcriber: Transcriber, files: Sequence[Path]) -> dict[str, str]:
    """With the size of every recording: its sound may be too long to read twice."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file} {file.stat().st_size if file.is_file() else None}\n".encode(errors="surrogateescape"))
    return transcriber.fingerprints | {"recordings": digest.hexdigest()[:16]}


def _printed(transcriber: Transcriber, files: Sequence[Path], facts: dict) -> Report:
    failed, texts, seconds, cut = [], [], 0.0, 0
    with progress("transcribing", _total_seconds(files), "s of audio") as bar:
        meter = _Meter(bar)
        for transcript in transcriber.transcribe(files, _into(failed), meter.advance):
            texts.append(_shown(transcript))
            seconds += transcript.duration_s
            cut += transcript.cut_segments
    facts |= _speed(seconds, meter) | _cut(cut)
    return Report("transcribe", facts, table="\n".join([*texts, *_listed(failed)]), exit_code=1 if failed else 0)


def _transcribe_files(
    transcriber: Transcriber, stems: dict[Path, str], done: dict[str, Transcribed], work: Work, config: TranscribeConfig
) -> tuple[list[Transcribed], list[Failed], list[str], float]:
    """This process's share of the recordings that are not done. Returns what all processes did, the first texts, and the seconds
    it took."""
    waiting = [file for file in stems if str(file) not in done]
    mine, rows, failed, texts = list(processes.share(waiting)), [], [], []
    path = work.path / "unfinished" / f"{processes.rank()}.jsonl"
    with progress("transcribing", _total_seconds(waiting), "s of audio") as bar, JsonlAppender(path) as appender:
        meter = _Meter(bar)
        for transcript in transcriber.transcribe(mine, _into(failed), meter.advance):
            stem = stems[Path(transcript.file)]
            for name in config.formats:
                write_atomic(work.path / f"{stem}.{name}", FORMATS[name](transcript))
            rows.append(_row(transcript, stem))
            appender.append(rows[-1:])
            if len(texts) < _SHOWN_TEXTS:
                texts.append(_shown(transcript))
    return processes.gather(rows), processes.gather(failed), texts, meter.seconds()


def _shown(transcript: Transcript) -> str:
    text = FORMATS["txt"](transcript).rstrip("\n")
    return f"{transcript.file}\n{textwrap.indent(text or '(nothing)', '  ')}\n"


def _row(transcript: Transcript, stem: str) -> Transcribed:
    seconds = round(transcript.timings["seconds"], 3)
    return Transcribed(
        transcript.file, stem, round(transcript.duration_s, 3), len(transcript.segments), len(transcript.tags_filtered), seconds,
        transcript.cut_segments,
    )  # fmt: skip


def _finished_before(work: Work) -> dict[str, Transcribed]:
    """What an interrupted run finished: file -> row."""
    return {row.file: row for path in sorted((work.path / "unfinished").glob("*.jsonl")) for row in iter_rows(path, Transcribed)}


def _finish(
    work: Work, stems: dict[Path, str], formats: Sequence[str], rows: list[Transcribed], failed: list[Failed], seconds: float
) -> dict[str, float]:
    finished = _finished_before(work)
    ordered = [finished[str(file)] for file in stems if str(file) in finished]
    work.run.write_rows("recordings.jsonl", ordered)
    work.run.write_rows("failed.jsonl", failed)
    for path in (work.path / "unfinished").glob("*.jsonl"):
        path.unlink()
    (work.path / "unfinished").rmdir()
    audio_s = sum(row.duration_s for row in rows)
    metrics = {
        "transcribed": len(ordered), "failed": len(failed), "audio_s": sum(row.duration_s for row in ordered),
        "tags": sum(row.tags for row in ordered), "cut_segments": sum(row.cut_segments for row in ordered), "seconds": seconds,
        "times_real_time": audio_s / seconds if seconds else None,
    }  # fmt: skip
    work.tracker.summary(metrics)
    work.done(metrics, fingerprint_files(work.path / f"{row.stem}.{name}" for row in ordered for name in formats))
    return metrics


def _report(config: TranscribeConfig, facts: dict, metrics: dict, failed: list[Failed], texts: list[str]) -> Report:
    facts |= {"transcribed": metrics["transcribed"], "audio": format_seconds(metrics["audio_s"])}
    facts["time"] = f"{format_seconds(metrics['seconds'])}" + (
        f", {metrics['times_real_time']:.1f} × real time" if metrics["times_real_time"] else ""
    )
    facts |= _cut(metrics["cut_segments"])
    names = ", ".join(f"*.{name}" for name in config.formats)
    if metrics["transcribed"] > len(texts):
        texts = [*texts, f"… {metrics['transcribed'] - len(texts)} more\n"]
    table = "\n".join([*texts, *_listed(failed, config.output / "failed.jsonl")])
    return Report("transcribe", facts | {"output": f"{config.output}: {names}"}, table=table, exit_code=1 if failed else 0)


def _listed(failed: list[Failed], written: Path | None = None) -> list[str]:
    """The recordings that could not be read, for the report's table."""
    if not failed:
        return []
    lines = [f"  {row.file}: {row.reason}" for row in failed[:_SHOWN_FAILURES]]
    if len(failed) > len(lines):
        lines.append(f"  … {len(failed) - len(lines)} more")
    where = f" (all in {written})" if written else ""
    return [f"not transcribed: {len(failed)}{where}\n" + "\n".join(lines) + "\n"]


def _cut(segments: int) -> dict[str, str]:
    """Empty if every row ended by itself."""
    if not segments:
        return {}
    return {"cut short": f"{segments} segments had more to write: raise decode.max_new_tokens"}


def _speed(audio_s: float, meter: "_Meter") -> dict[str, str]:
    seconds = meter.seconds()
    speed = f", {audio_s / seconds:.1f} × real time" if seconds and audio_s else ""
    return {"audio": format_seconds(audio_s), "time": f"{format_seconds(seconds)}{speed}"}


def _total_seconds(files: Sequence[Path]) -> int:
    return round(sum(_header_seconds(file) or 0.0 for file in files))


def _header_seconds(file: Path) -> float | None:
    try:
        return open_recording(file).duration_s
    except RowError:
        return None


def _into(failed: list[Failed]) -> Callable[[Path, RowError], None]:
    return lambda file, error: failed.append(Failed(str(file), str(error)))


class _Meter:
    """Whole seconds of audio for the progress bar, and the time since it was made."""

    def __init__(self, bar: Progress):
        self._bar, self._audio_s, self._started = bar, 0.0, time.monotonic()

    def seconds(self) -> float:
        return time.monotonic() - self._started

    def advance(self, audio_s: float) -> None:
        whole = int(self._audio_s)
        self._audio_s += audio_s
        self._bar.advance(processes.count() * (int(self._audio_s) - whole))
