"""How many people can speak at a time, and what the adapter's row costs beside the base's.

    streams   in real time, through the engine: each speaks demo clips with quiet between them, from a random moment on, in chunks
              of 80 ms. More and more of them, until real time is lost. Lag: from a frame's arrival to its tokens.
    rows      the live decoder alone, streams that all speak: the base alone, a model without adapter, against both rows, base and
              adapter. The two in turn. On a CPU, its own time is measured, not that on the wall: other work does not count.

    python benchmarks/serving.py [--streams 1 2 4 8 …] [--seconds 15] [--rounds 3] [--document docs/benchmarks.md]
    python benchmarks/serving.py --full-size

`--full-size` writes a checkpoint of the published shape with random weights, and an adapter, into a temporary folder (9 GB). It
needs a CUDA GPU. Its streams are at most as many as the engine finds memory for. `--shape FOLDER` takes another config.json, to
try out the script without a GPU.
"""

import argparse
import asyncio
import statistics
import tempfile
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from measuring import in_turn, machine, ratio
from speech import Clip, quiet, read_clips
from studies import filled
from transformers import AutoConfig, VoxtralRealtimeConfig

from evoxtral_train.config.sections import Model
from evoxtral_train.config.serving import ServeConfig
from evoxtral_train.config.training import Lora
from evoxtral_train.decoding.live import LiveDecoder
from evoxtral_train.families.checkpoint import base_fingerprint, open_family
from evoxtral_train.families.realtime.model import CachedAudioVoxtralRealtimeForConditionalGeneration, network_of
from evoxtral_train.files import write_atomic
from evoxtral_train.modeling.adapter_record import AdapterRecord
from evoxtral_train.modeling.adapters import add_lora
from evoxtral_train.reporting.tables import markdown_table
from evoxtral_train.serving.engine import Engine
from evoxtral_train.serving.utterances import live_kind
from evoxtral_train.transcription.transcriber import Transcriber
from evoxtral_train.units import SAMPLE_RATE_HZ, TOKEN_S, TOKEN_SAMPLES, seconds_to_samples

QUIET_S, WARM_UP_S, LATE_S, LOST_S, STEPS = (2.2, 4.0), 5.0, 0.5, 1.0, 30
TINY_BASE, TINY_TAGGER = Path("data/tiny-base"), Path("data/tiny-tagger")


@dataclass(frozen=True)
class Load:
    """What some streams did to the engine. `lag_s`: of each frame, in order."""

    streams: int
    seconds: float
    step_s: Sequence[float]
    lag_s: Sequence[float]

    @property
    def p50_s(self) -> float:
        return float(np.quantile(self.lag_s, 0.5))

    @property
    def p95_s(self) -> float:
        return float(np.quantile(self.lag_s, 0.95))

    @property
    def late(self) -> float:
        """Share of the frames whose tokens came later than `LATE_S`."""
        return float(np.mean(np.array(self.lag_s) > LATE_S))

    @property
    def is_lost(self) -> bool:
        """Frames wait too long, or longer and longer."""
        quarter = max(len(self.lag_s) // 4, 1)
        first, last = (statistics.median(part) for part in (self.lag_s[:quarter], self.lag_s[-quarter:]))
        return self.p95_s > LOST_S or last > max(2 * first, LATE_S)


async def speak(engine: Engine, clips: Sequence[Clip], random: np.random.Generator) -> None:
    """Speaks without end, in real time."""
    stream = engine.open_stream("both")
    reading = asyncio.create_task(_read(stream))
    try:
        await asyncio.sleep(random.uniform(0, TOKEN_S))
        begun, sent_s, quiet_s = time.monotonic(), 0.0, random.uniform(0, WARM_UP_S)
        while True:
            samples = np.concatenate([quiet(quiet_s), clips[int(random.integers(len(clips)))].samples])
            quiet_s = random.uniform(*QUIET_S)
            for at in range(0, len(samples), TOKEN_SAMPLES):
                chunk = samples[at : at + TOKEN_SAMPLES]
                sent_s += len(chunk) / SAMPLE_RATE_HZ
                await asyncio.sleep(begun + sent_s - time.monotonic())
                await stream.feed(chunk)
    finally:
        stream.cancel()
        await reading


async def _read(stream) -> None:
    async for _ in stream.events():
        pass


async def load(engine: Engine, clips: Sequence[Clip], streams: int, seconds: float, seed: int) -> Load:
    speakers = [asyncio.create_task(speak(engine, clips, np.random.default_rng([seed, number]))) for number in range(streams)]
    await asyncio.sleep(WARM_UP_S)
    engine._step_s, engine._lag_s = deque(), deque()  # all of them, not only the newest
    await asyncio.sleep(seconds)
    done = Load(streams, seconds, [*engine._step_s], [*engine._lag_s])
    for speaker in speakers:
        speaker.cancel()
    with suppress(asyncio.CancelledError):
        await asyncio.gather(*speakers, return_exceptions=True)
    return done


async def streams_until_lost(engine: Engine, clips: Sequence[Clip], counts: Sequence[int], seconds: float, rounds: int):
    """Yields the rounds of each number of streams, up to the first at which most rounds lose real time."""
    for count in counts:
        if count > engine.slots:
            return
        done = [await load(engine, clips, count, seconds, seed) for seed in range(rounds)]
        yield done
        if statistics.median(each.is_lost for each in done) >= 0.5:
            return


def load_line(rounds: Sequence[Load]) -> list[str]:
    """Medians over the rounds; of the 95th percentile also the range."""

    def middle(of: Callable[[Load], float]) -> float:
        return statistics.median(map(of, rounds))

    p95_ms = [1000 * each.p95_s for each in rounds]
    return [
        f"{rounds[0].streams}", f"{middle(lambda each: len(each.lag_s) / len(each.step_s)):.1f}",
        f"{1000 * middle(lambda each: statistics.median(each.step_s)):.1f}",
        f"{middle(lambda each: sum(each.step_s) / each.seconds):.2f}", f"{1000 * middle(lambda each: each.p50_s):.0f}",
        f"{statistics.median(p95_ms):.0f} ({min(p95_ms):.0f} to {max(p95_ms):.0f})",
        f"{middle(lambda each: each.late):.4f}",
        "lost" if statistics.median(each.is_lost for each in rounds) >= 0.5 else "kept",
    ]  # fmt: skip


class Rows:
    """The live decoder of a transcriber's rows, for `streams` that speak at a time."""

    def __init__(self, transcriber: Transcriber, streams: int, clips: Sequence[Clip]):
        network, adapters, settings = transcriber.loaded
        longest_tokens = max(row.request("", seconds_to_samples(20), 0).end for row in transcriber.rows) + 64
        encoder = network.streams(transcriber.base.family, streams, longest_tokens)
        self._kinds = [live_kind(row) for row in transcriber.rows]
        rows = streams * len(self._kinds)
        self._decoder = LiveDecoder(network, encoder, settings, self._kinds, streams, rows, longest_tokens, adapters)
        long = np.concatenate([clip.samples for clip in clips])
        shift = len(long) // streams
        needed = self._decoder.window_samples + STEPS * TOKEN_SAMPLES
        self._samples = [np.roll(long, -number * shift)[:needed] for number in range(streams)]

    def steps(self) -> None:
        utterances = [self._decoder.seat(self._kinds) for _ in self._samples]
        for utterance, samples in zip(utterances, self._samples, strict=True):
            utterance.hear(samples)
        for _ in range(STEPS):
            self._decoder.step(utterances)
        for utterance in utterances:
            self._decoder.leave(utterance)


def compare_rows(base: Path, adapter: Path, clips: Sequence[Clip], counts: Sequence[int], rounds: int) -> str:
    bare, both = (Transcriber(config_of(base, adapters)) for adapters in ([], [adapter]))
    lines, clock = [], time.perf_counter if torch.cuda.is_available() else time.process_time
    for count in counts:
        ways = {"base alone": Rows(bare, count, clips).steps, "both rows": Rows(both, count, clips).steps}
        seconds = in_turn(ways, rounds, clock)
        each_ms = {name: 1000 * statistics.median(times) / STEPS for name, times in seconds.items()}
        against = ratio(seconds["both rows"], seconds["base alone"])
        lines.append([f"{count}", *(f"{value:.2f} ms" for value in each_ms.values()), against])
    return markdown_table(["streams", "base alone, a step", "both rows, a step", "ratio: median (range)"], lines)


def config_of(base: Path, adapters: Sequence[Path], streams: int | None = None, known_tags_only: bool = True) -> ServeConfig:
    return ServeConfig(
        model={"base": str(base)}, adapters=list(adapters), live={"streams": streams},
        decode={"max_new_tokens": 64, "batch_tokens": 65_536, "known_tags_only": known_tags_only},
    )  # fmt: skip


def write_random(folder: Path, shape: Path | None) -> tuple[Path, Path]:
    """A base of this shape, by default the published one, with random weights, and an adapter on it: the folders of both. It has
    the tiny base's tokenizer, and cannot write the ids that this lacks: their embeddings are 0, and so are their logits."""
    base, adapter, family = folder / "base", folder / "adapter", open_family(TINY_BASE)
    config = AutoConfig.from_pretrained(shape) if shape else VoxtralRealtimeConfig()
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = CachedAudioVoxtralRealtimeForConditionalGeneration(config)
    torch.set_default_dtype(torch.float32)
    model.get_output_embeddings().weight.data[family.tokenizer.n_words :] = 0
    family.save(model, base)
    record = AdapterRecord.read(TINY_TAGGER)
    adapted = add_lora(network_of(model, family.clock), Lora(), Model(base=str(base)))
    adapted.model.save_pretrained(adapter)
    record.model_copy(update={"base": base_fingerprint(base)}).write(adapter)
    return base, adapter


async def measure(arguments: argparse.Namespace, base: Path, adapter: Path) -> dict[str, str]:
    clips, sections = read_clips(arguments.manifest, "test", 60), {}
    if "rows" in arguments.only:
        sections["serving-rows"] = compare_rows(base, adapter, clips, arguments.row_streams, arguments.row_rounds)
    if "streams" in arguments.only:
        slots = None if arguments.full_size else max(arguments.streams)
        engine = Engine(config_of(base, [adapter], slots))
        engine.start()
        lines = [
            load_line(done) async for done in
            streams_until_lost(engine, clips, arguments.streams, arguments.seconds, arguments.rounds)
        ]  # fmt: skip
        engine.stop()
        header = ["streams", "frames a step", "ms a step, p50", "busy", "lag p50, ms", "lag p95, ms", f"later than {LATE_S:g} s",
                  "real time"]  # fmt: skip
        sections["serving-streams"] = f"{markdown_table(header, lines)}\n\n{engine.slots} slots"
    return sections


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=["streams", "rows"], default=["streams", "rows"])
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 2, 4, 8, 12, 16, 24, 32, 48, 64])
    parser.add_argument("--seconds", type=float, default=15.0, help="that a number of streams is measured for, in each round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--row-streams", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--row-rounds", type=int, default=9)
    parser.add_argument("--base", type=Path, default=TINY_BASE)
    parser.add_argument("--adapter", type=Path, default=TINY_TAGGER)
    parser.add_argument("--manifest", type=Path, default=Path("runs/demo/data/manifest.jsonl"))
    parser.add_argument("--full-size", action="store_true")
    parser.add_argument("--shape", type=Path, help="folder with a config.json, in place of the published shape")
    parser.add_argument("--document", type=Path, help="Markdown file whose tables to update")
    arguments = parser.parse_args()
    if arguments.full_size and not (arguments.shape or torch.cuda.is_available()):
        raise SystemExit("benchmarks/serving.py --full-size needs a CUDA GPU; nothing was measured")
    base, adapter = arguments.base, arguments.adapter
    with tempfile.TemporaryDirectory() as folder:
        if arguments.full_size:
            base, adapter = write_random(Path(folder), arguments.shape)
        sections = asyncio.run(measure(arguments, base, adapter))
    sections = {name: f"{section}\n\n{machine()}" for name, section in sections.items()}
    print(*sections.values(), sep="\n\n")
    if arguments.document:
        write_atomic(arguments.document, filled(arguments.document.read_text("utf-8"), sections))


if __name__ == "__main__":
    main()
