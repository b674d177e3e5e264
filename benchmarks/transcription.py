"""`evoxtral transcribe` on the demo's test clips: one by one, joined to a long recording, and cut into many short ones.

    clips    the base's words and the adapter's tags, against those of `evoxtral eval`
    long     two hours of clips and silences: memory, speed, and what is lost against the clips one by one
    many     1,000 short files in one call, against one call each
    tags     only tags that exist, against any tag: greedy and sampled
    words    the times of the base's words, against the manifest's
    shares   where the time goes

    python benchmarks/transcription.py [--only clips long …] [--document docs/studies/transcription.md]
"""

import argparse
import cProfile
import json
import pstats
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from functools import cached_property
from itertools import pairwise
from pathlib import Path

import numpy as np
import soundfile
from measuring import machine
from studies import DEMO, Command, filled, run_phases, systems_of

from evoxtral_train.config.sections import Model
from evoxtral_train.data.audio import read_audio
from evoxtral_train.dataset.reader import PackedSplit
from evoxtral_train.decoding.decoder import Decoding, decode, requests_of
from evoxtral_train.decoding.known_tags import KnownTags
from evoxtral_train.decoding.sampling import Sampling
from evoxtral_train.files import write_atomic
from evoxtral_train.modeling.adapters import find_adapter, load_adapter
from evoxtral_train.modeling.audio_cache import open_cache
from evoxtral_train.modeling.bases import open_base_of
from evoxtral_train.records import Prediction, read_jsonl
from evoxtral_train.reporting.tables import interval, markdown_table
from evoxtral_train.scoring.metrics import evaluate, sums
from evoxtral_train.scoring.significance import PRIMARY_LEVEL, difference
from evoxtral_train.text.normalize import normalize_words
from evoxtral_train.text.tags import find_tags
from evoxtral_train.transcription.transcriber import Transcriber
from evoxtral_train.units import SAMPLE_RATE_HZ

SILENCE_S, LONG_MINUTES = (2.0, 6.0), (10, 120)
TINY_BASE = "data/tiny-base"
MANY, CALLS, SHORT_S = 1000, 5, (1.0, 2.0)
SAMPLED = {"sampled, temperature 0.7, top-p 0.9": Sampling(0.7, 0.9), "sampled, temperature 1": Sampling(1.0)}
CANDIDATES, NEW_TOKENS, BATCH_TOKENS = 4, 64, 16_384


@dataclass(frozen=True)
class Bench:
    """`evaluation`: of the adapter, named SFT, on the same clips. `output`: finished commands are not repeated there."""

    dataset: Path
    evaluation: Path
    adapter: Path
    manifest: Path
    output: Path

    @cached_property
    def rows(self) -> list[dict]:
        return [row for _, row in read_jsonl(self.manifest) if row["split"] == "test"]

    def audio_of(self, row: dict) -> Path:
        return self.manifest.parent / row["audio"]

    def command(self, sources: Iterable[Path], name: str, *settings: str) -> Command:
        """`evoxtral transcribe` into a folder of this name."""
        folder, sets = self.output / name, ["tracking.mode=disabled", *settings]
        words = ["transcribe", *map(str, sources), "--adapter", str(self.adapter), "--output", str(folder)]
        return Command([*words, *(word for each in sets for word in ("--set", each))], folder)

    def run(self, *commands: Command) -> None:
        run_phases([[command] for command in commands], 1, self.output / "logs")

    @cached_property
    def one_by_one(self) -> dict[str, dict]:
        """clip -> JSON of its transcript"""
        command = self.command(map(self.audio_of, self.rows), "clips")
        self.run(command)
        return transcripts_in(command.result)


@dataclass(frozen=True)
class Placed:
    """A clip in a long recording."""

    row: dict
    start_s: float
    end_s: float

    def spans(self, kind: str) -> list[tuple[float, float]]:
        """(start_s, end_s) of its "words" or "events", on the recording's clock."""
        return [tuple(self.start_s + span[key] for key in ("start_s", "end_s")) for span in self.row.get(kind) or []]


def transcripts_in(folder: Path) -> dict[str, dict]:
    stems = [row["stem"] for _, row in read_jsonl(folder / "recordings.jsonl")]
    return {stem: json.loads((folder / f"{stem}.json").read_text("utf-8")) for stem in stems}


def clips(bench: Bench) -> str:
    """The words are compared with an evaluation of the base alone, on the same clips packed to be scored by words."""
    packed, alone = bench.output / "packed-text", bench.output / "eval-text"
    bench.run(
        Command.of("data pack", DEMO / "pack.yaml", packed, manifest=bench.manifest, target="text"),
        Command.of("eval", DEMO / "eval-sft.yaml", alone, dataset=packed, systems="[{name: base}]"),
    )
    base, adapter, transcripts = systems_of(alone)["base"], systems_of(bench.evaluation)["SFT"], bench.one_by_one
    words = [Prediction(row.id, row.reference, transcripts[row.id]["text"]) for row in base]
    tags = [Prediction(row.id, row.reference, _tags_of(transcripts[row.id])) for row in adapter]
    other_texts = sum(row.prediction != mine.prediction for row, mine in zip(base, words, strict=True))
    other_tags = sum(row.prediction != mine.prediction for row, mine in zip(adapter, tags, strict=True))
    confidences = [[tag["confidence"] for tag in transcripts[row.id]["tags"]] for row in adapter]
    other_confidences = sum(row.confidences != mine for row, mine in zip(adapter, confidences, strict=True))
    reports = {name: evaluate(rows, name.startswith("base")) for name, rows in (
        ("base eval", base), ("base transcribe", words), ("tags eval", adapter), ("tags transcribe", tags))}  # fmt: skip
    lines = []
    for title, part, path in (
        ("WER of the base", "base", ("wer", "micro")), ("CER of the base", "base", ("cer", "micro")),
        ("micro F1 of the tags", "tags", ("micro", "f1")), ("card F1 of the tags", "tags", ("card", "f1")),
        ("false tags per untagged clip", "tags", ("false_tags_per_untagged_clip",)),
    ):  # fmt: skip
        values = [_at(reports[f"{part} {way}"], path)["value"] for way in ("eval", "transcribe")]
        lines.append([title, *(f"{value:.6f}" for value in values)])
    table = markdown_table([f"{len(words)} clips", "`eval`", "`transcribe`"], lines)
    differ = f"{other_texts} in their text, {other_tags} in their tags, {other_confidences} in confidences"
    return f"{table}\n\nClips that differ: {differ}."


def _tags_of(transcript: dict) -> str:
    return " ".join(f"[{tag['tag']}]" for tag in transcript["tags"])


def _at(report: dict, path: Sequence[str]) -> dict:
    for key in path:
        report = report[key]
    return report


def long(bench: Bench) -> str:
    columns = [_long(bench, minutes) for minutes in LONG_MINUTES]
    header = ["", *(f"{minutes} minutes" for minutes in LONG_MINUTES)]
    return markdown_table(header, [[name, *(column[name] for column in columns)] for name in columns[0]])


def _long(bench: Bench, minutes: int) -> dict[str, str]:
    path, folder = bench.output / f"{minutes}-minutes.flac", bench.output / f"{minutes}-minutes"
    placed = join(bench, minutes, path)
    _, peak_mb = fresh([*bench.command([path], folder.name).words, "--overwrite"])
    path.unlink()
    [transcript], metrics = transcripts_in(folder).values(), json.loads((folder / "metrics.json").read_text("utf-8"))
    segments, words = transcript["segments"], transcript["words"]
    starts, ends = (np.array([segment[key] for segment in segments]) for key in ("start_s", "end_s"))
    heard: dict[int, list[dict]] = {}  # clip -> its segments
    owners = [int(np.argmax([min(clip.end_s, end) - max(clip.start_s, start) for clip in placed]))
              for start, end in zip(starts, ends, strict=True)]  # fmt: skip
    for owner, segment in zip(owners, segments, strict=True):
        heard.setdefault(owner, []).append(segment)
    spans = {kind: [span for clip in placed for span in clip.spans(kind)] for kind in ("events", "words")}
    lost = {kind: sum(_is_lost(span, starts, ends) for span in found) for kind, found in spans.items()}
    split = sum(len(parts) > 1 for parts in heard.values())
    joined = len(placed) - len(heard)
    ordered = all(one["start_s"] <= one["end_s"] <= other["start_s"] for one, other in pairwise(words))
    ordered &= bool((ends[:-1] <= starts[1:]).all())
    here = [_prediction(clip.row, heard.get(number, [])) for number, clip in enumerate(placed)]
    alone = [_prediction(clip.row, bench.one_by_one[clip.row["id"]]["segments"]) for clip in placed]
    wer, f1 = ([report[family][measure] for report in (evaluate(alone, True), evaluate(here, True))]
               for family, measure in (("wer", "micro"), ("micro", "f1")))  # fmt: skip
    errors = np.concatenate([
        word_errors(clip, [word for word in words if parts[0]["start_s"] <= word["end_s"] <= parts[-1]["end_s"] + 1])
        for clip, parts in ((placed[number], parts) for number, parts in heard.items())
    ])  # fmt: skip
    return {
        "clips, segments": f"{len(placed)}, {len(segments)}",
        "clips split, joined": f"{split / len(placed):.3f}, {joined / len(placed):.3f}",
        "events outside of a segment": f"{lost['events']} of {len(spans['events'])}",
        "words outside of a segment": f"{lost['words']} of {len(spans['words'])}",
        "words and segments in order": "yes" if ordered else "no",
        "WER, one by one → here": _change(*wer, _difference(alone, here, "wer")),
        "micro F1, one by one → here": _change(*f1, _difference(alone, here, "micro_f1")),
        "word ends against the manifest: mean error, bias": f"{np.abs(errors[:, 1]).mean():.3f} s, {errors[:, 1].mean():+.3f} s",
        "peak memory of the process": f"{peak_mb:.0f} MB",
        "time": f"{metrics['seconds']:.0f} s, {metrics['times_real_time']:.1f} × real time",
    }


def _is_lost(span: tuple[float, float], starts: np.ndarray, ends: np.ndarray) -> bool:
    at = int(np.searchsorted(starts, span[0] + 0.001, "right")) - 1
    return at < 0 or span[1] > ends[at] + 0.001


def _change(before: dict, after: dict, change: str) -> str:
    return f"{before['value']:.4f} → {after['value']:.4f}: {change}"


def _difference(before: Sequence[Prediction], after: Sequence[Prediction], measure: str) -> str:
    """`after` minus `before`, with its 95% interval over clips."""
    first, second = (sums(rows, measure == "wer")[measure] for rows in (before, after))
    change = difference(first, second, [row.id for row in before], PRIMARY_LEVEL, 1000, 0)
    return f"{change['value']:+.4f} [{change['low']:+.4f}, {change['high']:+.4f}]"


def _prediction(row: dict, segments: Sequence[dict]) -> Prediction:
    return Prediction(row["id"], row["text"], " ".join(segment["merged"] for segment in segments))


def join(bench: Bench, minutes: int, path: Path) -> list[Placed]:
    """Writes the clips in random order, again and again, with silences between them."""
    rng, placed, at = np.random.default_rng(0), [], 0
    path.parent.mkdir(parents=True, exist_ok=True)
    with soundfile.SoundFile(path, "w", SAMPLE_RATE_HZ, 1) as file:
        while at < minutes * 60 * SAMPLE_RATE_HZ:
            for number in rng.permutation(len(bench.rows)):
                row = bench.rows[number]
                samples = read_audio(bench.audio_of(row), 60.0)
                placed.append(Placed(row, at / SAMPLE_RATE_HZ, (at + len(samples)) / SAMPLE_RATE_HZ))
                silence = np.zeros(int(rng.uniform(*SILENCE_S) * SAMPLE_RATE_HZ), np.float32)
                file.write(np.concatenate([samples, silence]))
                at += len(samples) + len(silence)
                if at >= minutes * 60 * SAMPLE_RATE_HZ:
                    break
    return placed


def fresh(words: Sequence[str]) -> tuple[float, float]:
    """An `evoxtral` command in a process of its own: (seconds, peak memory in MB)."""
    started, peak_kb = time.perf_counter(), 0
    with subprocess.Popen(
        [sys.executable, "-m", "evoxtral_train.cli", *words], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as process:
        while process.poll() is None:
            found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{process.pid}/status").read_text("ascii"))
            peak_kb = max(peak_kb, int(found[1]) if found else 0)
            time.sleep(0.05)
        if process.returncode:
            raise SystemExit(f"evoxtral {' '.join(words)[:500]}\n{process.stderr.read()[-2000:]}")
    return time.perf_counter() - started, peak_kb * 1024 / 1e6


def many(bench: Bench) -> str:
    folder, rng = bench.output / "short", np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"{number:04}.flac" for number in range(MANY)]
    for number, file in enumerate(files):
        samples = read_audio(bench.audio_of(bench.rows[number % len(bench.rows)]), 60.0)
        length = min(int(rng.uniform(*SHORT_S) * SAMPLE_RATE_HZ), len(samples))
        start = int(rng.integers(0, len(samples) - length + 1))
        soundfile.write(file, samples[start : start + length], SAMPLE_RATE_HZ)
    together_s, _ = fresh([*bench.command([folder], "many").words, "--overwrite"])
    single = [fresh([*bench.command([file], f"single-{file.stem}").words, "--overwrite"])[0] for file in files[:CALLS]]
    each_s = statistics.median(single)
    return markdown_table(
        ["", "seconds"],
        [
            [f"one call for {MANY:,} files of {SHORT_S[0]:g} to {SHORT_S[1]:g} s", f"{together_s:.1f}"],
            [f"one call for one file: median of {CALLS}", f"{each_s:.2f} ({min(single):.2f} to {max(single):.2f})"],
            [f"{MANY:,} such calls, extrapolated", f"{MANY * each_s:.0f}: {MANY * each_s / together_s:.0f} × as long"],
        ],
    )


def tags(bench: Bench) -> str:
    """Greedily by `transcribe`; sampled as RAFT does, several candidates per clip."""
    any_tag = bench.command(map(bench.audio_of, bench.rows), "any-tag", "decode.known_tags_only=false")
    bench.run(any_tag)
    split = PackedSplit(bench.dataset, "test")
    references = {example.id: example.text for example in split.examples}
    greedy = [
        [Prediction(identity, references[identity], _tags_of(transcript)) for identity, transcript in transcripts.items()]
        for transcripts in (transcripts_in(any_tag.result), bench.one_by_one)
    ]
    pairs = {"greedy": greedy} | {name: sampled(bench, split, references, sampling) for name, sampling in SAMPLED.items()}
    lines = []
    for name, (before, after) in pairs.items():
        changes = [_difference(before, after, measure) for measure in ("micro_f1", "false_tags_per_untagged_clip")]
        for title, rows in (("any", before), ("known", after)):
            report, written = evaluate(rows, False), [tag for row in rows for tag in find_tags(row.prediction)]
            unknown = sum(tag not in split.tags for tag in written)
            measures = (report["micro"]["f1"], report["false_tags_per_untagged_clip"])
            lines.append([name, title, f"{unknown} of {len(written)}", *map(interval, measures)])
        lines.append([name, "difference", "", *changes])
    return markdown_table(["decoding", "tags", "unknown tags", "micro F1", "false tags / untagged clip"], lines)


def sampled(bench: Bench, split: PackedSplit, references: dict[str, str], sampling: Sampling) -> list[list[Prediction]]:
    """The candidates without and with known tags only."""
    base = open_base_of(split, Model(base=TINY_BASE, dtype="float32"))
    network = load_adapter(base.family.load("float32"), find_adapter(bench.adapter))
    audio = open_cache(network, network.device, base.fingerprint, split)
    tokenizer, both = base.family.tokenizer, []
    for known in (None, KnownTags(base.family.tokenizer, split.tags)):
        settings = Decoding(CANDIDATES, sampling, NEW_TOKENS, BATCH_TOKENS, known_tags=known)
        rows = [row for batch in decode(network, audio, requests_of(split), settings) for row in batch]
        rows.sort(key=lambda row: (row.utterance_id, row.candidate_id))
        both.append([Prediction(row.utterance_id, references[row.utterance_id], tokenizer.decode(row.token_ids)) for row in rows])
    return both


def words(bench: Bench) -> str:
    errors = np.concatenate([word_errors(Placed(row, 0.0, 0.0), bench.one_by_one[row["id"]]["words"]) for row in bench.rows])
    total = sum(len(row["words"]) for row in bench.rows)
    lines = [
        [name, f"{np.abs(column).mean():.3f} s", f"{column.mean():+.3f} s", f"{np.quantile(np.abs(column), 0.95):.3f} s"]
        for name, column in zip(("`start_s`", "`end_s`"), errors.T, strict=True)
    ]
    return markdown_table([f"{len(errors)} of {total} words", "mean error", "bias", "95% below"], lines)


def word_errors(clip: Placed, words: Sequence[dict]) -> np.ndarray:
    """[matched words, 2]: the errors of `start_s` and `end_s` of the words that were recognized."""
    blocks = SequenceMatcher(None, _names(clip.row["words"]), _names(words), autojunk=False).get_matching_blocks()
    pairs = [(block.a + place, block.b + place) for block in blocks for place in range(block.size)]
    heard = np.array([[words[at]["start_s"], words[at]["end_s"]] for _, at in pairs]).reshape(-1, 2)
    return heard - np.array([clip.spans("words")[at] for at, _ in pairs]).reshape(-1, 2)


def _names(words: Sequence[dict]) -> list[str]:
    return [normalize_words(word["word"]) for word in words]


def shares(bench: Bench) -> str:
    transcriber, profile = Transcriber.of([bench.adapter]), cProfile.Profile()
    files = [bench.audio_of(row) for row in bench.rows]
    list(transcriber.transcribe(files[:1]))  # loads the weights
    started = time.perf_counter()
    list(transcriber.transcribe(files))
    plain_s = time.perf_counter() - started
    profile.runcall(lambda: list(transcriber.transcribe(files)))
    stats = pstats.Stats(profile)
    seconds = {(Path(file).name, name): cumulative for (file, _, name), (*_, cumulative, _) in stats.stats.items()}
    encoding = seconds["segment_audio.py", "embeddings"]
    parts = {
        "reading and cutting": seconds["segments.py", "segments_of"],
        "mel": seconds["family.py", "mel"],
        "audio encoder": encoding - seconds["family.py", "mel"],
        "prefill": seconds["decoder.py", "_seat"] - encoding,
        "steps of the language model": seconds["decoder.py", "_read"],
        "choosing tokens": seconds["decoder.py", "_write"],
        "table": seconds["decoder.py", "_resize"],
        "words, tags, confidences": seconds["transcriber.py", "_written"],
    }
    parts["rest"] = stats.total_tt - sum(parts.values())
    lines = [[name, f"{part / stats.total_tt:.3f}"] for name, part in parts.items()]
    return markdown_table([f"{len(files)} clips in {plain_s:.1f} s, {stats.total_tt:.1f} s profiled", "share"], lines)


SECTIONS = {"clips": clips, "long": long, "many": many, "tags": tags, "words": words, "shares": shares}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(SECTIONS), default=list(SECTIONS))
    parser.add_argument("--dataset", type=Path, default=Path("runs/demo/packed"))
    parser.add_argument("--manifest", type=Path, default=Path("runs/demo/data/manifest.jsonl"))
    parser.add_argument("--evaluation", type=Path, default=Path("runs/demo/eval-sft"))
    parser.add_argument("--adapter", type=Path, default=Path("runs/demo/sft"))
    parser.add_argument("--output", type=Path, default=Path("runs/studies/transcription"))
    parser.add_argument("--document", type=Path, help="Markdown file whose tables to update")
    arguments = parser.parse_args()
    bench = Bench(arguments.dataset, arguments.evaluation, arguments.adapter, arguments.manifest, arguments.output)
    for name in arguments.only:
        section = f"{SECTIONS[name](bench)}\n\n{machine()}"
        print(f"\n{name}\n\n{section}", flush=True)
        if arguments.document:
            write_atomic(arguments.document, filled(arguments.document.read_text("utf-8"), {name: section}))


if __name__ == "__main__":
    main()
