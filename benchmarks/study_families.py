"""Both families side by side: one corpus, the same tags and splits, three seeds.

    Realtime, tags            the tags alone, when the clip has been heard (`deferred`): that family's default
    Realtime, tagged text     words and tags, when the clip has been heard
    offline, tagged text      words and tags, after the transcription prompt: that family's default

The bases are the tiny ones, each trained from nothing on the same sentences, so this compares two small models and two ways of
prompting, not the published checkpoints. LoRA on attention and MLP of the language model, r 16, the same epochs; each family at
the learning rate of its demo. Micro F1 and false tags are of the tags; WER is of the words, for the targets that have them.

Writes the results; `--document` also updates the document's tables.
"""

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from measuring import machine
from studies import (
    BOOTSTRAP_SEED,
    SAMPLES,
    Command,
    each_seed,
    finish,
    measure_yardsticks,
    options_of,
    run_phases,
    score_over_seeds,
    slug,
    systems_of,
    yardsticks_of,
)

from evoxtral_train.config.evaluation import Bootstrap
from evoxtral_train.config.sections import Model
from evoxtral_train.dataset.reader import PackedSplit
from evoxtral_train.decoding.decoder import Decoding, decode, requests_of
from evoxtral_train.decoding.sampling import Sampling
from evoxtral_train.modeling.adapters import find_adapter, load_adapter
from evoxtral_train.modeling.audio_cache import LiveAudio
from evoxtral_train.modeling.bases import open_base
from evoxtral_train.reporting.tables import interval, markdown_table
from evoxtral_train.scoring.metrics import evaluate

NEW_TOKENS = 64
TIMED_CLIPS = 50
DEMO, OFFLINE_DEMO = Path("configs/demo"), Path("configs/offline/demo")
LORA = r".*language_model.*\.(q|k|v|o|gate|up|down)_proj"


@dataclass(frozen=True)
class Variant:
    configs: Path
    base: str
    target: str
    learning_rate: float

    @property
    def dataset(self) -> str:
        return f"{Path(self.base).name}-{self.target}"


VARIANTS = {
    "Realtime, tags": Variant(DEMO, "data/tiny-base", "tags", 3e-3),
    "Realtime, tagged text": Variant(DEMO, "data/tiny-base", "tagged_text", 3e-3),
    "offline, tagged text": Variant(OFFLINE_DEMO, "data/tiny-offline-base", "tagged_text", 2e-3),
}


def main() -> None:
    options = _options()
    run_phases(phases(options), options.jobs, options.output / "logs")
    content = {"seeds": options.seeds, "epochs": options.epochs, "clips": options.clips, "device": machine()}
    content["yardsticks"] = {
        base: yardsticks_of(options.output / "eval" / f"yardsticks-{base}") for base in ("tiny-base", "tiny-offline-base")
    }
    content["test"] = {name: _scores(options, name) for name in VARIANTS}
    finish(options, content, sections(content))


def phases(options: argparse.Namespace) -> list[list[Command]]:
    root, clips = options.output, {f"clips__{split}": count for split, count in ({"raft": 0} | options.clips).items()}
    spoken = Command.of("data synth", DEMO / "synth.yaml", root / "data", seed=options.corpus_seed, **clips)
    packs, trains, evaluations = [], [], []
    for name, variant in VARIANTS.items():
        dataset = root / "packed" / variant.dataset
        own = {"layout__kind": "deferred"} if variant.configs == DEMO else {"language": "en"}
        packs.append(
            Command.of(
                "data pack", variant.configs / "pack.yaml", dataset, manifest=root / "data" / "manifest.jsonl",
                target=variant.target, **own,
            )
        )  # fmt: skip
        folders = {seed: root / "sft" / slug(name) / f"seed-{seed}" for seed in options.seeds}
        for seed, folder in folders.items():
            trains.append(
                Command.of(
                    "sft", variant.configs / "sft.yaml", folder, dataset=dataset, train__epochs=options.epochs,
                    train__seed=seed, train__learning_rate=variant.learning_rate, lora__r=16, lora__alpha=64, lora__dropout=0,
                    lora__target_modules=LORA,
                )
            )  # fmt: skip
        adapters = ", ".join(f"{{name: seed {seed}, adapter: {folder}}}" for seed, folder in folders.items())
        evaluations.append(
            Command.of(
                "eval", DEMO / "eval-sft.yaml", root / "eval" / slug(name), dataset=dataset, model__base=variant.base,
                decode__max_new_tokens=NEW_TOKENS, systems=f"[{{name: base}}, {adapters}]",
            )
        )  # fmt: skip
    yardsticks = [
        measure_yardsticks(root / "packed" / f"{base}-tagged_text", root / "eval" / f"yardsticks-{base}")
        for base in ("tiny-base", "tiny-offline-base")
    ]
    yardsticks = [
        Command([*each.words, "--set", f"model.base=data/{base}"], each.result)
        for each, base in zip(yardsticks, ("tiny-base", "tiny-offline-base"), strict=True)
    ]
    return [[spoken], packs, yardsticks, trains, evaluations]


def _scores(options: argparse.Namespace, name: str) -> dict:
    systems, variant = systems_of(options.output / "eval" / slug(name)), VARIANTS[name]
    base = systems.pop("base")
    report = score_over_seeds(systems)
    if variant.target != "tags":
        rows, bootstrap = [row for each in systems.values() for row in each], Bootstrap(samples=SAMPLES, seed=BOOTSTRAP_SEED)
        report["wer"] = evaluate(rows, True, bootstrap)["wer"]["micro"]
        report["base_wer"] = evaluate(base, True, bootstrap)["wer"]["micro"]
    report["decode_s_per_minute"] = _decoding_time(options, name)
    return report


@torch.inference_mode()
def _decoding_time(options: argparse.Namespace, name: str) -> float:
    """Seconds to encode and decode a minute of speech: clips of the test split together, the audio tower included."""
    variant = VARIANTS[name]
    split = PackedSplit(options.output / "packed" / variant.dataset, "test")
    folder = options.output / "sft" / slug(name) / f"seed-{options.seeds[0]}"
    network = load_adapter(open_base(Model(base=variant.base)).family.load("float32"), find_adapter(folder))
    requests = list(requests_of(split))[:TIMED_CLIPS]
    settings, times_s = Decoding(1, Sampling(), NEW_TOKENS, 8192), []
    for _ in range(3):
        begun = time.perf_counter()
        for _ in decode(network, LiveAudio(network, split), requests, settings):
            pass
        times_s.append(time.perf_counter() - begun)
    heard_s = sum(0.08 * int(split.utterance_tokens[request.index]) for request in requests)
    return min(times_s) * 60 / heard_s


def sections(content: dict) -> dict[str, str]:
    """The document's table, by marker name."""
    return {"families": table(content)}


def table(content: dict) -> str:
    header = [
        "system", "micro F1", "each seed", "false tags / untagged clip", "WER", "WER of its base",
        "decoding, s per minute of speech",
    ]  # fmt: skip
    rows = []
    for base, yardsticks in content["yardsticks"].items():
        for name, report in yardsticks.items():
            measures = (interval(report["micro"]["f1"]), "—", interval(report["false_tags_per_untagged_clip"]), "—", "—", "—")
            if name != "chance" or base == "tiny-base":
                rows.append([name if name == "chance" else f"{name}, {base}", *measures])
    for name, report in content["test"].items():
        words = [interval(report[each]) if each in report else "—" for each in ("wer", "base_wer")]
        tags = (interval(report["micro"]["f1"]), each_seed(report), interval(report["false_tags_per_untagged_clip"]))
        rows.append([name, *tags, *words, f"{report['decode_s_per_minute']:.2f}"])
    return markdown_table(header, rows)


def _options() -> argparse.Namespace:
    parser = options_of(__doc__, "families")
    parser.add_argument("--corpus-seed", type=int, default=11)
    parser.add_argument("--clips", type=json.loads, default={"train": 800, "validation": 60, "test": 300})
    parser.add_argument("--epochs", type=float, default=6)
    return parser.parse_args()


if __name__ == "__main__":
    main()
