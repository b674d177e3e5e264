"""How far do the figures carry? The adapters of `study_selection.py` on the same test scripts, spoken under other conditions.

    as trained            the six voices and the styles of the training clips
    unseen voices         six voices that no training clip has; whispers keep espeak-ng's only two whispering voices
    half-strength         the emotions halfway to neutral speech; deliveries and sounds as trained
    noise at 20, 10 dB    the clips as trained, with coloured noise at this signal-to-noise ratio (`dataset/augmentation.py`)

A script has one seed, so its clips differ by their condition alone. Measured are a linear probe on the frozen audio, fitted on
the training clips; SFT; and the arms of `study_selection.py` that are named. Nothing is trained here.

Writes the results; `--document` also updates the document's tables.
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from studies import (
    DEMO,
    Command,
    differences,
    each_seed,
    finish,
    measure_yardsticks,
    options_of,
    run_phases,
    score_over_seeds,
    signed,
    slug,
    systems_of,
)

from evoxtral_train.config.training import Augmentation
from evoxtral_train.data.audio import encode_flac
from evoxtral_train.dataset.augmentation import Bounds, augment
from evoxtral_train.files import write_atomic
from evoxtral_train.progress import Progress
from evoxtral_train.records import Prediction, dump_row, read_jsonl
from evoxtral_train.reporting.tables import interval, markdown_table
from evoxtral_train.run_folders import is_complete
from evoxtral_train.synthesis.scripts import Grammar, Script, draw_scripts
from evoxtral_train.synthesis.synthesizer import EMOTION_STYLES, VOICES, Style, Synthesizer, Voice

PROBE, SFT = "probe", "SFT"
AS_TRAINED = "as trained"
MEASURES = ("micro_f1", "false_tags_per_untagged_clip")
UNSEEN_VOICES = (
    Voice("en-us+m1", "en-us+whisper", 46, 100.0),
    Voice("en-us+f3", "en-us+whisperf", 48, 195.0),
    Voice("en-us+m6", "en-us+whisper", 50, 110.0),
    Voice("en-gb-x-rp+m8", "en-gb-x-rp+whisper", 52, 105.0),
    Voice("en-us+steph", "en-us+whisperf", 50, 180.0),
    Voice("en-gb-scotland+f5", "en-gb-scotland+whisperf", 48, 190.0),
)


@dataclass(frozen=True)
class Condition:
    voices: Sequence[Voice] = VOICES
    emotions: Mapping[str, Style] = field(default_factory=lambda: EMOTION_STYLES)
    noise_snr_db: float | None = None


def halfway(style: Style) -> Style:
    """Between `style` and neutral speech."""
    neutral = Style()
    return Style(**{name: (value + getattr(neutral, name)) / 2 for name, value in vars(style).items()})


CONDITIONS = {
    AS_TRAINED: Condition(),
    "unseen voices": Condition(voices=UNSEEN_VOICES),
    "half-strength": Condition(emotions={tag: halfway(style) for tag, style in EMOTION_STYLES.items()}),
    "noise at 20 dB": Condition(noise_snr_db=20.0),
    "noise at 10 dB": Condition(noise_snr_db=10.0),
}


def main() -> None:
    options = _options()
    adapters = {seed: _adapters(options, seed) for seed in options.seeds}
    for path in [path for of_seed in adapters.values() for path in of_seed.values()]:
        if not is_complete(path):
            raise SystemExit(f"{path}: not trained yet; first run: python benchmarks/study_selection.py")
    scripts = draw_scripts(Grammar.load(options.grammar), {"test": options.clips}, 0.3, options.corpus_seed)
    if not (options.output / "manifest.jsonl").is_file():
        speak(options, scripts)
    packed = options.output / "packed"
    pack = Command.of("data pack", DEMO / "pack.yaml", packed, manifest=options.output / "manifest.jsonl")
    evaluated = [measure_yardsticks(packed, options.output / "eval" / "yardsticks")]
    for seed, of_seed in adapters.items():
        for name, path in of_seed.items():
            settings = {"dataset": packed, "systems": f"[{{name: {slug(name)}, adapter: {path}}}]"}
            evaluated.append(Command.of("eval", DEMO / "eval-raft.yaml", _evaluation(options, name, seed), **settings))
    run_phases([[pack], evaluated], options.jobs, options.output / "logs")
    content = {"seeds": options.seeds, "clips": options.clips, "conditions": _results(options, scripts)}
    finish(options, content, sections(content))


def _adapters(options: argparse.Namespace, seed: int) -> dict[str, Path]:
    """name -> adapter, of the study that trained them."""
    arms = {name: options.study / "runs" / f"seed-{seed}" / slug(name) / "round-1/train" for name in options.arms}
    return {SFT: options.study / "sft" / f"seed-{seed}"} | arms


def _evaluation(options: argparse.Namespace, name: str, seed: int) -> Path:
    return options.output / "eval" / slug(name) / f"seed-{seed}"


def speak(options: argparse.Namespace, scripts: Sequence[Script]) -> None:
    """Every script under every condition, as the split test, beside the clips that the probe is fitted on."""
    study = options.study / "data"
    rows = [row | {"audio": str((study / row["audio"]).resolve())} for _, row in read_jsonl(study / "manifest.jsonl")]
    rows = [row for row in rows if row["split"] in ("train", "validation")]
    bar = Progress("speaking", len(scripts) * len(CONDITIONS), "clips")
    for name, condition in CONDITIONS.items():
        synthesizer = Synthesizer(emotions=condition.emotions)
        for number, script in enumerate(scripts):
            voice, identity = condition.voices[number % len(condition.voices)], f"{slug(name)}-{script.id}"
            clip = synthesizer.render(script.text, voice, seed=options.corpus_seed * 1_000_003 + number)
            samples = clip.samples
            if condition.noise_snr_db is not None:
                samples = with_noise(samples, condition.noise_snr_db, seed=number)
            write_atomic(options.output / "audio" / f"{identity}.flac", encode_flac(samples))
            row = {"id": identity, "audio": f"audio/{identity}.flac", "text": script.text, "split": "test"}
            rows.append(row | {"speaker": voice.name, "events": clip.events})
            bar.advance(1)
    bar.close()
    write_atomic(options.output / "manifest.jsonl", "".join(map(dump_row, rows)))


def with_noise(samples: np.ndarray, snr_db: float, seed: int) -> np.ndarray:
    """Mono float32 at 16 kHz, with noise as in training with augmentation, but nothing else."""
    bounds = Bounds(gain_db=0, noise_snr_db=(snr_db, snr_db), stretch_to=None, pitch_semitones=0, room=False, bit_depth=None)
    return augment(samples, bounds, Augmentation(probability=1.0), seed)[0]


def _results(options: argparse.Namespace, scripts: Sequence[Script]) -> dict:
    """condition -> system -> scores, with the differences from the same system as trained."""
    probe = systems_of(options.output / "eval" / "yardsticks")[PROBE]
    predictions = {PROBE: {"": probe}}
    for name in (SFT, *options.arms):
        folders = {f"seed {seed}": _evaluation(options, name, seed) for seed in options.seeds}
        predictions[name] = {seed: systems_of(folder)[slug(name)] for seed, folder in folders.items()}

    def under(condition: str, system: str) -> dict[str, list[Prediction]]:
        """seed -> what it writes, the clips named by their scripts."""
        by_id = {seed: {row.id: row for row in rows} for seed, rows in predictions[system].items()}
        prefix = slug(condition)
        return {seed: [replace(rows[f"{prefix}-{each.id}"], id=each.id) for each in scripts] for seed, rows in by_id.items()}

    results = {}
    for condition in CONDITIONS:
        results[condition] = {}
        for system in predictions:
            rows = under(condition, system)
            pooled = (_pooled(under(AS_TRAINED, system)), _pooled(rows))
            results[condition][system] = score_over_seeds(rows) | {"against_as_trained": differences(*pooled)}
    return results


def _pooled(rows: Mapping[str, Sequence[Prediction]]) -> list[Prediction]:
    return [row for of_seed in rows.values() for row in of_seed]


def sections(content: dict) -> dict[str, str]:
    """The document's tables, by marker name."""
    rows = []
    for condition, systems in content["conditions"].items():
        for name, report in systems.items():
            measures = (report["micro"]["f1"], report["macro"]["f1"], report["false_tags_per_untagged_clip"])
            micro, macro, false_tags = map(interval, measures)
            changes = [signed(report["against_as_trained"][measure]) for measure in MEASURES]
            changes = ["", ""] if condition == AS_TRAINED else changes
            seeds = "—" if name == PROBE else each_seed(report)
            rows.append([condition, name, micro, seeds, macro, false_tags, *changes])
    columns = ["condition", "system", "micro F1", "each seed", "macro F1", "false tags / untagged clip"]
    return {"stress": markdown_table([*columns, "micro F1, change", "false tags, change"], rows)}


def _options() -> argparse.Namespace:
    parser = options_of(__doc__, "stress")
    parser.add_argument("--study", type=Path, default=Path("runs/studies/selection"), help="finished study_selection.py")
    parser.add_argument("--arms", nargs="*", default=["verifier"], help="arms of study_selection.py to measure beside SFT")
    parser.add_argument("--grammar", type=Path, default=Path("data/scripts/grammar.yaml"))
    parser.add_argument("--corpus-seed", type=int, default=17)
    parser.add_argument("--clips", type=int, default=400, help="test scripts; each is spoken under every condition")
    return parser.parse_args()


if __name__ == "__main__":
    main()
