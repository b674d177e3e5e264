"""`evoxtral data synth`: tagged scripts to speech, with a manifest; espeak-ng also gives exact times."""

import os
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ... import shipped
from ...config.data import SynthConfig
from ...data.audio import encode_flac
from ...data.manifest import Rejected
from ...data.workers import in_order, usable_cores, worker_pool
from ...errors import RowError, UsageError
from ...files import disk_errors, fingerprint_files, fingerprint_text, write_atomic
from ...progress import progress
from ...reading import file_name
from ...records import JsonlAppender, dump_row, read_jsonl
from ...runs import Options, Run, check_output
from ...synthesis import elevenlabs
from ...synthesis.scripts import Grammar, Script, draw_scripts, read_scripts
from ...synthesis.synthesizer import VOICES, Synthesizer, Voice
from ...text.tags import find_tags
from ...text.taxonomy import TagRules, describe_changes
from ...tracking import Tracker
from ...units import samples_to_seconds
from ..report import Report, all_rejected

_PART = "manifest.part.jsonl"
_CHUNK_CLIPS = 32
_KEY = "ELEVENLABS_API_KEY"


def run(config: SynthConfig, options: Options) -> Report:
    """Writes `manifest.jsonl`, `audio/*.flac` and `rejected.jsonl` (scripts that cannot be spoken).

    With espeak-ng the same config gives the same bytes; a clip depends on its script, its index and the seed.
    """
    source, tally = config.scripts or config.grammar, Counter()
    if config.scripts:
        scripts, rejected = read_scripts(config.scripts, TagRules.of(config.tags), tally)
    else:
        grammar = Grammar.load(config.grammar)
        scripts, rejected = draw_scripts(grammar, config.clips.model_dump(), config.untagged_share, config.seed), []
    engine = _Paid(config, scripts) if config.engine == "elevenlabs" else _Espeak(config)
    facts = {
        "scripts": f"{len(scripts)} from {source}" + (f", {len(rejected)} rejected" if rejected else ""),
        "splits": ", ".join(f"{split} {count}" for split, count in Counter(script.split for script in scripts).items()),
        "without tags": f"{sum(not find_tags(script.text) for script in scripts) / max(len(scripts), 1):.0%}",
        **{f"tags {change}": count for change, count in describe_changes(tally).items()},
        **({"first rejected": rejected[0]} if rejected else {}),
        **engine.plan(),
        "output": config.output,
    }
    resolved, inputs = config.model_dump(mode="json"), {"scripts": fingerprint_files([shipped.find(source)])}
    if not scripts and not rejected:
        raise UsageError("contains no scripts", where=str(source), fix="write rows of {text}")
    if options.dry_run:
        check_output(config.output, "data synth", resolved, inputs, options)
        if not scripts:
            raise _nothing_spoken(source, rejected)
        return Report("plan: data synth", facts)
    if scripts:
        engine.prepare()
    run = Run.open(config.output, "data synth", resolved, inputs, options, [source])
    started = time.monotonic()
    with Tracker(config.tracking, "data synth", run.path, config) as tracker:
        engine.fetch()
        rejected += _speak_all(run, scripts, source, engine)
        run.write_rows("rejected.jsonl", rejected)
        rows = [row for _, row in read_jsonl(run.path / _PART)]
        if not rows:
            raise _nothing_spoken(source, rejected, run.path / "rejected.jsonl")
        hours = sum(row.pop("duration_s") for row in rows) / 3600
        run.write_rows("manifest.jsonl", rows)
        (run.path / _PART).unlink()
        metrics = {
            "clips": len(rows), "rejected": len(rejected), "hours": hours, "seconds": time.monotonic() - started,
            "untagged_share": sum(not find_tags(row["text"]) for row in rows) / len(rows),
        }  # fmt: skip
        tracker.summary(metrics)
    run.finish(metrics, fingerprint_text("".join(map(dump_row, rows))))
    facts |= {"clips written": len(rows), "rejected": len(rejected), "hours of audio": f"{hours:.2f}"}
    if rejected:
        facts |= {"first rejected": rejected[0], "all rejected": config.output / "rejected.jsonl"}
    facts["manifest"] = config.output / "manifest.jsonl"
    return Report("data synth", facts)


def _nothing_spoken(source: Path, rejected: list[Rejected], written: Path | None = None) -> UsageError:
    return all_rejected("no script can be spoken", len(rejected), source, str(rejected[0]), written)


@dataclass(frozen=True)
class _Spoken:
    """A clip as FLAC, its length, and further columns for the manifest."""

    flac: bytes
    duration_s: float
    columns: dict

    @classmethod
    def of(cls, samples, columns: dict) -> "_Spoken":
        """`samples`: mono float32 at 16 kHz."""
        return cls(encode_flac(samples), samples_to_seconds(len(samples)), columns)


Waiting = tuple[int, Script]
"""A script and its place among all scripts."""


class _Espeak:
    """The engine that needs no key and gives exact times. Several processes speak."""

    def __init__(self, config: SynthConfig):
        self._config, self._voices = config, _voices(config.voices)

    def plan(self) -> dict:
        return {"engine": "espeak-ng", "voices": len(self._voices)}

    def prepare(self) -> None:
        Synthesizer(self._config.rates_wpm)  # fails here, with the reason, where espeak-ng is missing

    def fetch(self) -> None:
        """Does nothing: each clip is spoken in `speak`."""

    def speak(self, waiting: list[Waiting]) -> Iterator[_Spoken | RowError]:
        parts = [waiting[start : start + _CHUNK_CLIPS] for start in range(0, len(waiting), _CHUNK_CLIPS)]
        processes = min(self._config.processes or usable_cores(), len(parts))
        if processes <= 1:
            _start(self._config)
            yield from map(_speak, waiting)
            return
        with worker_pool(processes, self._config.output, _start, self._config, imports=()) as pool:
            for spoken in in_order(pool, _speak_part, parts, ahead=2 * processes):
                yield from spoken


_speaker: tuple | None = None  # per process: the config, its voices, the synthesizer


def _start(config: SynthConfig) -> None:
    global _speaker
    _speaker = config, _voices(config.voices), Synthesizer(config.rates_wpm)


def _speak_part(part: list[Waiting]) -> list[_Spoken | RowError]:
    return [_speak(waiting) for waiting in part]


def _speak(waiting: Waiting) -> _Spoken | RowError:
    (config, voices, synthesizer), (index, script) = _speaker, waiting
    voice = voices[index % len(voices)]
    try:
        clip = synthesizer.render(script.text, voice, seed=config.seed * 1_000_003 + index)
    except RowError as error:
        return error
    times = {"words": _rounded(clip.words), "events": _rounded(clip.events)}
    return _Spoken.of(clip.samples, {"speaker": voice.name, "source": "espeak-ng", **times})


class _Paid:
    """ElevenLabs: downloads everything first, then reads it back like any audio."""

    def __init__(self, config: SynthConfig, scripts: list[Script]):
        if not config.voices:
            raise UsageError("engine elevenlabs needs voices", where="voices", fix="list the ids of voices in your account")
        self._config, self._settings, self._refused = config, config.elevenlabs, {}
        elevenlabs.check_settings(self._settings)
        self._requests = [self._request(script, index) for index, script in enumerate(scripts)]
        self._missing = elevenlabs.not_paid_yet(self._requests, self._settings.paid_audio)

    def _request(self, script: Script, index: int) -> elevenlabs.Request:
        voices, settings = self._config.voices, self._settings
        # One seed for the corpus: a repeated sentence in the same voice is one request.
        return elevenlabs.Request(
            script.text, voices[index % len(voices)], settings.model, settings.output_format, self._config.seed
        )

    def plan(self) -> dict:
        characters, price = self._characters(), self._settings.usd_per_1000_characters
        cost = f"{characters * price / 1000:.2f} USD" if price else "unknown: set elevenlabs.usd_per_1000_characters"
        return {
            "engine": f"ElevenLabs {self._settings.model}", "voices": len(self._config.voices),
            "to pay for": f"{len(self._missing)} requests, {characters:,} characters (tags included)",
            "cost": cost, "already paid": len(set(self._requests)) - len(self._missing),
            "limit": f"{self._settings.max_characters:,} characters",
        }  # fmt: skip

    def _characters(self) -> int:
        return sum(len(request.text) for request in self._missing)

    def prepare(self) -> None:
        characters, allowed = self._characters(), self._settings.max_characters
        if characters > allowed:
            raise UsageError(
                f"this run would pay for {characters:,} characters, but only {allowed:,} are allowed",
                where="elevenlabs.max_characters",
                fix="see the plan with --dry-run, then raise the limit",
            )
        if self._missing and not os.environ.get(_KEY):
            raise UsageError("no key for ElevenLabs", where=_KEY, fix="set this environment variable; nothing else is read")

    def fetch(self) -> None:
        if self._missing:
            with progress("paying for", len(self._missing), "clips") as bar:
                self._refused = elevenlabs.fetch(self._missing, self._settings, os.environ[_KEY], bar.advance)

    def speak(self, waiting: list[Waiting]) -> Iterator[_Spoken | RowError]:
        for index, _ in waiting:
            request = self._requests[index]
            if request in self._refused:
                yield RowError(self._refused[request])
                continue
            try:
                samples = elevenlabs.read_paid(request, self._settings.paid_audio)
            except RowError as error:
                yield error
            else:
                yield _Spoken.of(samples, {"speaker": request.voice, "source": f"elevenlabs {request.model}"})


def _speak_all(run: Run, scripts: list[Script], source: Path, engine: _Espeak | _Paid) -> list[Rejected]:
    """Speak every script that an earlier, unfinished run did not. Returns those that cannot be spoken."""
    rejected = []
    with JsonlAppender(run.path / _PART) as appender, progress("speaking", len(scripts), "clips") as bar:
        before = {row["id"] for _, row in read_jsonl(run.path / _PART)}
        bar.skip(len(before))
        waiting = [(index, script) for index, script in enumerate(scripts) if script.id not in before]
        for (_, script), spoken in zip(waiting, engine.speak(waiting), strict=True):
            if isinstance(spoken, RowError):
                rejected.append(Rejected.of(source, script.line, script.id, spoken))
                continue
            audio = f"audio/{file_name(script.id)}.flac"
            write_atomic(run.path / audio, spoken.flac)
            row = {
                "id": script.id, "audio": audio, "text": script.text, "split": script.split, **spoken.columns,
                "duration_s": spoken.duration_s,
            }  # fmt: skip
            with disk_errors(appender.path):
                appender.append([row])
            bar.advance()
    return rejected


def _rounded(spans: list[dict]) -> list[dict]:
    return [{key: round(value, 4) if isinstance(value, float) else value for key, value in span.items()} for span in spans]


def _voices(names: list[str] | None) -> list[Voice]:
    known = {voice.name: voice for voice in VOICES}
    unknown = [name for name in names or [] if name not in known]
    if unknown:
        raise UsageError(f"unknown voice {unknown[0]!r}", where="voices", fix=f"known voices: {', '.join(known)}")
    return [known[name] for name in names] if names else list(VOICES)
