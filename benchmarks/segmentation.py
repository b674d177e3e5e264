"""What cutting long recordings keeps: the demo's test clips, joined with silences, clean and in noise.

An event or word is inside if one segment holds it from start to end. A clip is whole if one segment holds all its words, and
alone if that segment holds none of another clip's.

    python benchmarks/segmentation.py [--manifest runs/demo/data/manifest.jsonl] [--split test] [--seed 0]
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
from scipy.fft import next_fast_len

from evoxtral_train.config.transcription import Segmentation
from evoxtral_train.data.audio import read_audio
from evoxtral_train.data.segments import segments_of
from evoxtral_train.units import SAMPLE_RATE_HZ

SILENCE_S = (2.0, 6.0)


def joined(rows: list[dict], folder: Path, rng: np.random.Generator) -> tuple[np.ndarray, dict[str, list]]:
    """The clips with silences between them, and the spans: {"events" | "words": [(clip, name, start_s, end_s)]}."""
    parts, spans, at = [], {"events": [], "words": []}, 0
    for clip, row in enumerate(rows):
        audio = read_audio(folder / row["audio"], 60.0)
        for kind, found in spans.items():
            for span in row.get(kind) or []:
                start_s, end_s = (at / SAMPLE_RATE_HZ + span[key] for key in ("start_s", "end_s"))
                found.append((clip, span.get("tag"), start_s, end_s))
        parts += [audio, np.zeros(int(rng.uniform(*SILENCE_S) * SAMPLE_RATE_HZ), np.float32)]
        at += len(parts[-1]) + len(audio)
    return np.concatenate(parts), spans


def in_noise(samples: np.ndarray, snr_db: float, rng: np.random.Generator, slope: float = 0.0) -> np.ndarray:
    """Noise whose power falls with this power of the frequency: 0 white, 1 pink (rooms), 2 brown (wind). Silent samples do not
    count for the ratio."""
    power = float(np.square(samples[samples != 0], dtype=np.float64).mean())
    length = next_fast_len(len(samples), real=True)
    hertz = np.fft.rfftfreq(length, 1 / SAMPLE_RATE_HZ)
    spectrum = np.fft.rfft(rng.standard_normal(length)) * np.maximum(hertz, 20.0) ** (-slope / 2)
    noise = np.fft.irfft(spectrum, length)[: len(samples)]
    return samples + (noise * np.sqrt(power / 10 ** (snr_db / 10)) / noise.std()).astype(np.float32)


def conditions(clean: np.ndarray, rng: np.random.Generator):
    time_s = np.arange(len(clean)) / SAMPLE_RATE_HZ
    yield "clean", clean
    yield "white noise, 20 dB", in_noise(clean, 20, rng)
    yield "white noise, 10 dB", in_noise(clean, 10, rng)
    yield "pink noise, 20 dB", in_noise(clean, 20, rng, slope=1)
    yield "pink noise, 10 dB", in_noise(clean, 10, rng, slope=1)
    yield "brown noise, 10 dB", in_noise(clean, 10, rng, slope=2)
    yield "hum of 50 Hz, -30 dBFS", clean + (10 ** (-30 / 20) * np.sin(2 * np.pi * 50 * time_s)).astype(np.float32)
    yield "30 dB quieter from the middle on", np.where(time_s < time_s[-1] / 2, clean, clean * 10 ** (-30 / 20))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--manifest", type=Path, default=Path("runs/demo/data/manifest.jsonl"))
    parser.add_argument("--split", default="test")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    rows = [json.loads(line) for line in arguments.manifest.read_text("utf-8").splitlines()]
    rows = [row for row in rows if row["split"] == arguments.split]
    rng = np.random.default_rng(arguments.seed)
    clean, spans = joined(rows, arguments.manifest.parent, rng)
    minutes = len(clean) / SAMPLE_RATE_HZ / 60
    print(f"{len(rows)} clips, {len(spans['events'])} events, {len(spans['words'])} words in {minutes:.1f} minutes")
    print(f"{'':<34}{'events':>8}{'words':>8}{'whole':>8}{'alone':>8}{'segments':>10}{'kept':>8}{'× real time':>13}")
    for name, samples in conditions(clean, rng):
        started = time.perf_counter()
        segments = list(segments_of([samples], Segmentation()))
        seconds = time.perf_counter() - started
        starts = np.array([segment.start_samples for segment in segments]) / SAMPLE_RATE_HZ
        ends = np.array([segment.end_samples for segment in segments]) / SAMPLE_RATE_HZ
        inside, words_at, missed = {}, {}, {}
        for kind, found in spans.items():
            holders = [int(np.searchsorted(starts, start_s, "right")) - 1 for _, _, start_s, _ in found]
            held = [at >= 0 and end_s <= ends[at] + 0.001 for at, (*_, end_s) in zip(holders, found, strict=True)]
            inside[kind] = np.mean(held)
            for (clip, tag, *_), at, is_held in zip(found, holders, held, strict=True):
                if kind == "words":
                    words_at.setdefault(clip, set()).add(at if is_held else None)
                elif not is_held:
                    missed[tag] = missed.get(tag, 0) + 1
        whole = {clip: next(iter(at)) for clip, at in words_at.items() if len(at) == 1 and None not in at}
        everyone = [at for places in words_at.values() for at in places]
        alone = np.mean([everyone.count(at) == 1 for at in whole.values()]) * len(whole) / len(words_at)
        kept = sum(len(segment.samples) for segment in segments) / len(samples)
        print(
            f"{name:<34}{inside['events']:>8.3f}{inside['words']:>8.3f}{len(whole) / len(words_at):>8.3f}{alone:>8.3f}"
            f"{len(segments):>10}{kept:>8.2f}{seconds / len(samples) * SAMPLE_RATE_HZ:>13.5f}   {missed or ''}"
        )


if __name__ == "__main__":
    main()
