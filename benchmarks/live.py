"""Held-out clips joined by quiet, fed live through the engine, against `transcribe` on each clip alone: words, tags, utterances,
and how long after its sound a tag comes.

The lag of a tag is on the audio's clock: how much had been decoded when the tag was said, minus the end of its event in the
manifest. It holds on any machine that keeps up.

    python benchmarks/live.py [--clips 50] [--seed 0] [--document docs/studies/live.md]
"""

import argparse
import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from measuring import machine
from speech import Account, Clip, Placed, account, quiet, read_clips
from studies import filled

from evoxtral_train.config.serving import ServeConfig
from evoxtral_train.files import write_atomic
from evoxtral_train.records import Prediction
from evoxtral_train.reporting.tables import interval, markdown_table
from evoxtral_train.scoring.metrics import evaluate, sums
from evoxtral_train.scoring.significance import PRIMARY_LEVEL, difference
from evoxtral_train.serving.engine import Engine
from evoxtral_train.serving.events import LiveEvent, TagHeard, UtteranceEnded
from evoxtral_train.units import SAMPLE_RATE_HZ, samples_to_seconds

QUIET_S, SHIFT_S, NOISE_DB, CHUNK_SAMPLES = 2.0, (0.1, 0.5), -60.0, 1600


@dataclass(frozen=True)
class Written:
    """What was written for a clip."""

    text: str
    tags: Sequence[str]


@dataclass(frozen=True)
class Heard:
    """A stream that was fed live. `tags`: (seconds decoded, event)."""

    written: list[Written]
    account: Account
    lags_s: list[float]


def joined(clips: Sequence[Clip], shift_s: Sequence[float], noise_db: float | None) -> tuple[list[Placed], np.ndarray]:
    """The clips, each behind that much quiet more than QUIET_S, in a stream of noise at this level."""
    placed, parts, at = [], [], 0
    for clip, more_s in zip(clips, shift_s, strict=True):
        before = quiet(more_s + (QUIET_S if placed else 0.0))
        placed.append(Placed(clip, samples_to_seconds(at + len(before))))
        parts += [before, clip.samples]
        at += len(before) + len(clip.samples)
    return placed, np.concatenate(parts) + quiet(at / SAMPLE_RATE_HZ, noise_db)


async def hear(engine: Engine, placed: Sequence[Placed], samples: np.ndarray) -> Heard:
    stream, events, tags = engine.open_stream(), [], []
    channel, emit = stream.channel, stream.channel._emit

    def note(new: list[LiveEvent]) -> None:
        """In the engine's thread: how much of the head has been decoded when a tag is said."""
        head = channel.head
        if head is not None and head.live is not None:
            decoded_s = samples_to_seconds(head.start_samples + head.live.decoded_samples)
            tags.extend((decoded_s, event) for event in new if isinstance(event, TagHeard))
        emit(new)

    channel._emit = note

    async def feed() -> None:
        for start in range(0, len(samples), CHUNK_SAMPLES):
            await stream.feed(samples[start : start + CHUNK_SAMPLES])
        stream.end()

    feeding = asyncio.create_task(feed())
    async for event in stream.events():
        events.append(event)
    await feeding
    segments = [event.segment for event in events if isinstance(event, UtteranceEnded)]
    done = account(placed, [(segment.start_s, segment.end_s) for segment in segments])
    written, taken = [], set()
    for numbers in done.heard:
        own = [segments[number] for number in numbers if number not in taken]  # of a joined one, the first clip has all
        taken |= set(numbers)
        written.append(Written(" ".join(each.text for each in own), [tag.tag for each in own for tag in each.tags_filtered]))
    return Heard(written, done, list(_lags_of(placed, done, tags)))


def _lags_of(placed: Sequence[Placed], done: Account, tags: Sequence[tuple[float, TagHeard]]):
    """From the end of each event to its tag; the first tag of that name in the clip's utterances that no other event has."""
    for clip, numbers in zip(placed, done.heard, strict=True):
        said = [(decoded_s, event.tag.tag) for decoded_s, event in tags if event.utterance in numbers]
        for event in clip.clip.row["events"]:
            if found := next((each for each in said if each[1] == event["tag"]), None):
                said.remove(found)
                yield found[0] - clip.start_s - event["end_s"]


def alone(engine: Engine, clips: Sequence[Clip]) -> list[Written]:
    """What `transcribe` writes for each file."""
    transcripts = engine.transcriber.transcribe([clip.file for clip in clips])
    return [Written(each.text, [tag.tag for part in each.segments for tag in part.tags_filtered]) for each in transcripts]


def predictions(clips: Sequence[Clip], written: Sequence[Written]) -> list[Prediction]:
    return [
        Prediction(clip.row["id"], clip.row["text"], " ".join([*(f"[{tag}]" for tag in each.tags), each.text]))
        for clip, each in zip(clips, written, strict=True)
    ]


def lines_of(clips: Sequence[Clip], expected: Sequence[Written], ways: dict[str, Heard]) -> list[list[str]]:
    before = predictions(clips, expected)
    identities = [row.id for row in before]
    lines = [["each clip alone, `transcribe`", *_scores(before), "", "", "", ""]]
    for name, heard in ways.items():
        after, texts = predictions(clips, heard.written), heard.written
        change = difference(sums(before, True)["micro_f1"], sums(after, True)["micro_f1"], identities, PRIMARY_LEVEL, 1000, 0)
        against = [Prediction(row.id, each.text, text.text) for row, each, text in zip(before, expected, texts, strict=True)]
        same = sum(sorted(one.tags) == sorted(other.tags) for one, other in zip(expected, texts, strict=True))
        count = len(clips)
        lines.append([
            name, *_scores(after), f"{change['value']:+.3f} [{change['low']:+.3f}, {change['high']:+.3f}]",
            f"{evaluate(against, True)['wer']['micro']['value']:.4f}", f"{same} of {count}",
            f"{heard.account.split / count:.3f}, {heard.account.joined / count:.3f}, {heard.account.lost / count:.3f}",
        ])  # fmt: skip
    return lines


def _scores(rows: list[Prediction]) -> list[str]:
    report = evaluate(rows, True)
    return [interval(report["micro"]["f1"]), interval(report["wer"]["micro"])]


def lag_lines(ways: dict[str, Heard]) -> list[list[str]]:
    quantiles = (0.05, 0.5, 0.95)
    return [
        [name, f"{len(heard.lags_s)}", *(f"{value:.2f} s" for value in np.quantile(heard.lags_s, quantiles))]
        for name, heard in ways.items()
    ]


async def measure(engine: Engine, clips: Sequence[Clip], seed: int) -> dict[str, Heard]:
    shifts = np.random.default_rng(seed).uniform(*SHIFT_S, len(clips))
    streams = {
        f"joined by {QUIET_S:g} s of quiet": joined(clips, [0.0] * len(clips), None),
        f"and {SHIFT_S[0]:g} to {SHIFT_S[1]:g} s more": joined(clips, shifts, None),
        f"the same, in noise at {NOISE_DB:g} dBFS": joined(clips, shifts, NOISE_DB),
    }
    heard = await asyncio.gather(*[hear(engine, placed, samples) for placed, samples in streams.values()])
    return dict(zip(streams, heard, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0, help="of the choice of clips and of the quiet between them")
    parser.add_argument("--base", default="data/tiny-base")
    parser.add_argument("--adapter", type=Path, default=Path("data/tiny-tagger"))
    parser.add_argument("--manifest", type=Path, default=Path("runs/demo/data/manifest.jsonl"))
    parser.add_argument("--document", type=Path, help="Markdown file whose tables to update")
    arguments = parser.parse_args()
    clips = read_clips(arguments.manifest, "test")
    clips = [clips[number] for number in np.random.default_rng(arguments.seed).permutation(len(clips))[: arguments.clips]]
    engine = Engine(ServeConfig(model={"base": arguments.base}, adapters=[arguments.adapter]))
    expected = alone(engine, clips)
    engine.start()
    ways = asyncio.run(measure(engine, clips, arguments.seed))
    engine.stop()
    header = ["", "micro F1", "WER", "change of micro F1", "WER against alone", "same tags", "clips split, joined, lost"]
    sections = {
        f"live-{len(clips)}": markdown_table(header, lines_of(clips, expected, ways)),
        f"lags-{len(clips)}": markdown_table(["", "tags", "5%", "median", "95%"], lag_lines(ways)),
    }
    note = f"{len(clips)} clips of split `test`, seed {arguments.seed}; {machine()}"
    print(*sections.values(), note, sep="\n\n")
    if arguments.document:
        sections = {name: f"{section}\n\n{note}" for name, section in sections.items()}
        write_atomic(arguments.document, filled(arguments.document.read_text("utf-8"), sections))


if __name__ == "__main__":
    main()
