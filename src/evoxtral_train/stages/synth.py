"""`evoxtral data synth`: tagged scripts to speech, with a manifest that knows every time."""

import time

from ..config.schema import SynthConfig
from ..data.audio import encode_flac
from ..data.scripts import Grammar, Script, draw_scripts, read_scripts
from ..data.synthesis import VOICES, Synthesizer, Voice
from ..errors import RowError, UsageError
from ..progress import progress
from ..records import JsonlAppender, dump_row, read_jsonl
from ..runs import Options, Run, check_output, disk_errors, fingerprint_files, fingerprint_text, write_atomic
from ..text.tags import find_tags
from ..tracking import Tracker
from ..units import samples_to_seconds
from .report import Report

_PART = "manifest.part.jsonl"


def run(config: SynthConfig, options: Options) -> Report:
    """Writes `manifest.jsonl`, `audio/*.flac` and `rejected.jsonl` (scripts that cannot be spoken).

    Same config, same bytes: a clip depends on its script, its place in the corpus and the seed.
    """
    source = config.scripts or config.grammar
    if config.scripts:
        scripts, rejected = read_scripts(config.scripts)
    else:
        grammar = Grammar.load(config.grammar)
        scripts, rejected = draw_scripts(grammar, config.clips.model_dump(), config.untagged_share, config.seed), []
    voices = _voices(config.voices)
    facts = {
        "scripts": f"{len(scripts)} from {source}" + (f", {len(rejected)} rejected" if rejected else ""),
        "splits": ", ".join(f"{split} {count}" for split, count in _split_counts(scripts).items()),
        "without tags": f"{sum(not find_tags(script.text) for script in scripts) / max(len(scripts), 1):.0%}",
        "voices": len(voices),
        "output": config.output,
    }
    asked, inputs = config.model_dump(mode="json"), {"scripts": fingerprint_files([source])}
    if options.dry_run:
        check_output(config.output, "data synth", asked, inputs, options)
        return Report("plan: data synth", facts)
    if not scripts:
        raise UsageError("no script can be spoken", where=str(source), fix=f"first reason: {rejected[0]['reason']}")
    synthesizer = Synthesizer(config.rates_wpm)
    run = Run.open(config.output, "data synth", asked, inputs, options)
    started = time.monotonic()
    with Tracker(config.tracking, "data synth", config.output, config) as tracker:
        unspeakable = _speak_all(run, scripts, synthesizer, voices, config.seed)
        rejected += unspeakable
        rows = [row for _, row in read_jsonl(run.path / _PART)]
        if not rows:
            raise UsageError("no script could be spoken", where=str(source), fix=f"first reason: {rejected[0]['reason']}")
        hours = sum(row.pop("duration_s") for row in rows) / 3600
        run.write_rows("manifest.jsonl", rows)
        run.write_rows("rejected.jsonl", rejected)
        (run.path / _PART).unlink()
        metrics = {
            "clips": len(rows), "rejected": len(rejected), "hours": hours, "seconds": time.monotonic() - started,
            "untagged_share": sum(not row["events"] for row in rows) / len(rows),
        }  # fmt: skip
        tracker.summary(metrics)
        run.finish(metrics, fingerprint_text("".join(map(dump_row, rows))))
    facts |= {"clips written": len(rows), "rejected": len(rejected), "hours of audio": f"{hours:.2f}"}
    facts["manifest"] = run.path / "manifest.jsonl"
    return Report("data synth", facts)


def _speak_all(run: Run, scripts: list[Script], synthesizer: Synthesizer, voices: list[Voice], seed: int) -> list[dict]:
    """Speak every script that an earlier, unfinished run has not. Returns those that cannot be spoken."""
    rejected = []
    with JsonlAppender(run.path / _PART) as appender, progress("speaking", len(scripts), "clips") as bar:
        spoken = {row["id"] for _, row in read_jsonl(run.path / _PART)}
        bar.skip(len(spoken))
        for index, script in enumerate(scripts):
            if script.id in spoken:
                continue
            voice = voices[index % len(voices)]
            try:
                clip = synthesizer.render(script.text, voice, seed=seed * 1_000_003 + index)
            except RowError as error:
                rejected.append({"id": script.id, "text": script.text, "reason": str(error)})
                continue
            audio = f"audio/{script.id}.flac"
            write_atomic(run.path / audio, encode_flac(clip.samples))
            row = {
                "id": script.id, "audio": audio, "text": script.text, "split": script.split, "speaker": voice.name,
                "source": "espeak-ng", "words": _rounded(clip.words), "events": _rounded(clip.events),
                "duration_s": samples_to_seconds(len(clip.samples)),
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


def _split_counts(scripts: list[Script]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for script in scripts:
        counts[script.split] = counts.get(script.split, 0) + 1
    return counts
