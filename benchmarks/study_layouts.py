"""Where should the tags be written? Three layouts, the same corpus, steps and adapter, three seeds: `make study`.

    packed      right after the prompt: the published recipe
    deferred    at the end of the clip
    aligned     each tag when its event has ended; with true times, and with times from the base's own transcript
                (`data align`); with pads at full loss weight and at a fifth

The recipe is the demo's (`configs/demo/`). The base was pretrained on its streaming format only: `aligned` is that
format, `packed` and `deferred` are new to it. `packed` is also trained for twice the steps. The weight of the pads is
chosen on the validation split; all other results are on the test split.

Writes the results and the figure; `--document` also updates the document's tables.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from studies import (
    BOOTSTRAP_SEED,
    DEMO,
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
    with_events,
    yardsticks_of,
)

from evoxtral_train.records import Prediction
from evoxtral_train.reporting.tables import interval, markdown_table
from evoxtral_train.scoring import event_times


@dataclass(frozen=True)
class Variant:
    layout: str
    settings: dict = field(default_factory=dict)
    epochs_factor: int = 1
    times: str = "true"  # or "heard": those of `data align`

    @property
    def dataset(self) -> str:
        return self.layout if self.times == "true" else f"{self.layout}-{self.times}"


VARIANTS = {
    "packed": Variant("packed"),
    "packed, twice the steps": Variant("packed", epochs_factor=2),
    "deferred": Variant("deferred"),
    "aligned": Variant("aligned"),
    "aligned, times as heard by the base": Variant("aligned", times="heard"),
    "aligned, pads 0.2": Variant("aligned", {"train__pad_weight": 0.2}),
}
IN_THE_FIGURE = ("packed", "deferred", "aligned")
EDGES_S = [0, 0.5, 1.5, 2, 2.5, 3, 4, 5, 6, 30]


def main() -> None:
    options = _options()
    manifest = options.output / "data" / "manifest.jsonl"
    run_phases(phases(options, manifest), options.jobs, options.output / "logs")
    results = {
        split: {name: _scores(options.output, name, split, manifest) for name in options.only} for split in ("validation", "test")
    }
    results["test"] = yardsticks_of(options.output / "eval" / "yardsticks") | results["test"]
    shown = [name for name in IN_THE_FIGURE if name in options.only]
    recall = {name: recall_by_time(_rows(options.output, name, "test", manifest), fewest=options.fewest_events) for name in shown}
    heard = options.output / "heard" / "metrics.json"
    content = {
        "alignment": json.loads(heard.read_text("utf-8")) if heard.is_file() else None,
        "seeds": options.seeds,
        "epochs": options.epochs,
        "clips": options.clips,
        **results,
        "recall_by_time": recall,
    }
    finish(options, content, sections(content))
    draw(recall, options.output / "recall-by-time.png")
    if options.document:
        draw(recall, options.document.with_name("layouts-recall.png"))


def sections(content: dict) -> dict[str, str]:
    """The document's tables, by marker name."""
    return {"layouts": layouts_table(content), "pads": pads_table(content)}


def phases(options: argparse.Namespace, manifest: Path) -> list[list[Command]]:
    variants = {name: VARIANTS[name] for name in options.only}
    # The audio is the same in every layout, but the cache of `packed` ends before the clip does.
    dataset = options.output / "packed" / min(variant.layout for variant in variants.values())
    yardsticks = measure_yardsticks(dataset, options.output / "eval" / "yardsticks")
    return [*_data_phases(options, manifest, variants), [yardsticks], *_adapter_phases(options, variants)]


def _data_phases(options: argparse.Namespace, manifest: Path, variants: dict[str, Variant]) -> list[list[Command]]:
    """Synthesize; pack in each layout and, if needed, align; pack with the aligned times."""
    clips = {f"clips__{split}": count for split, count in ({"raft": 0} | options.clips).items()}
    spoken = Command.of("data synth", DEMO / "synth.yaml", manifest.parent, seed=options.corpus_seed, **clips)
    layouts = sorted({variant.layout for variant in variants.values()})
    packs = [_pack(options, layout, manifest, layout__kind=layout) for layout in layouts]
    if not any(variant.times == "heard" for variant in variants.values()):
        return [[spoken], packs]
    heard = options.output / "heard"
    base = {"model__base": "data/tiny-base", "model__dtype": "float32"}
    listened = Command.of("data align", Path("configs/align.yaml"), heard, manifest=manifest, keep_given_times="false", **base)
    return [[spoken], [*packs, listened], [_pack(options, "aligned-heard", heard / "manifest.jsonl", layout__kind="aligned")]]


def _pack(options: argparse.Namespace, name: str, manifest: Path, **settings) -> Command:
    return Command.of("data pack", DEMO / "pack.yaml", options.output / "packed" / name, manifest=manifest, **settings)


def _adapter_phases(options: argparse.Namespace, variants: dict[str, Variant]) -> list[list[Command]]:
    """Train every variant with every seed, longest first; then decode both held-out splits."""
    root, train, evaluate = options.output, [], []
    for name, variant in variants.items():
        folders = {seed: root / "sft" / slug(name) / f"seed-{seed}" for seed in options.seeds}
        for seed, folder in folders.items():
            settings = {"train__epochs": options.epochs * variant.epochs_factor, "train__seed": seed, **variant.settings}
            train.append(Command.of("sft", DEMO / "sft.yaml", folder, dataset=root / "packed" / variant.dataset, **settings))
        systems = ", ".join(f"{{name: seed {seed}, adapter: {folder}}}" for seed, folder in folders.items())
        for split in ("validation", "test"):
            settings = {"dataset": root / "packed" / variant.layout, "split": split, "systems": f"[{systems}]"}
            evaluate.append(Command.of("eval", DEMO / "eval-sft.yaml", root / "eval" / slug(name) / split, **settings))
    return [sorted(train, key=lambda command: "twice" not in str(command.result)), evaluate]


def _scores(root: Path, name: str, split: str, manifest: Path) -> dict:
    return score_over_seeds(_rows(root, name, split, manifest))


def _rows(root: Path, name: str, split: str, manifest: Path) -> dict[str, list[Prediction]]:
    systems = systems_of(root / "eval" / slug(name) / split)
    return {seed: with_events(rows, manifest) for seed, rows in systems.items()}


def recall_by_time(predictions: dict[str, list[Prediction]], edges_s: Sequence[float] = EDGES_S, fewest: int = 10) -> list[dict]:
    """`scoring.event_times.recall_by_time` over all seeds pooled; `events` counts each event once."""
    rows = [row for each in predictions.values() for row in each]
    seeds = len(predictions)
    table = event_times.recall_by_time(rows, edges_s, fewest * seeds, SAMPLES, BOOTSTRAP_SEED)
    return [row | {"events": row["events"] // seeds} for row in table]


def layouts_table(content: dict) -> str:
    header = ["layout", "micro F1", "each seed", "micro P", "micro R", "macro F1", "card F1", "false tags / untagged clip",
              "tags / clip"]  # fmt: skip
    rows = []
    for name, report in content["test"].items():
        measures = (report["micro"]["f1"], report["micro"]["precision"], report["micro"]["recall"], report["macro"]["f1"],
                    report["card"]["f1"], report["false_tags_per_untagged_clip"], report["tags_per_clip"])  # fmt: skip
        first, *others = map(interval, measures)
        rows.append([name, first, each_seed(report), *others])
    return markdown_table(header, rows)


def pads_table(content: dict) -> str:
    """Results on the validation split, on which the default was chosen."""
    rows = []
    for name, report in content["validation"].items():
        if name.startswith("aligned"):
            measures = (report["micro"]["f1"], report["false_tags_per_untagged_clip"], report["placed"]["micro"]["f1"])
            latency = report["placed"]["latency_s"]
            rows.append([name, *map(interval, measures), *(_seconds(latency[each]) for each in ("median", "p90"))])
    header = ["layout", "micro F1", "false tags / untagged clip", "placed micro F1", "latency, median (s)", "p90 (s)"]
    return markdown_table(header, rows)


def _seconds(value: float | None) -> str:
    return "—" if value is None else f"{value:.2f}"


def draw(recall: dict[str, list[dict]], path: Path) -> None:
    """Recall by event time, with a line and a 95% band for each layout."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    colours = {"packed": "#d1495b", "deferred": "#30638e", "aligned": "#00798c"}
    markers = {"packed": "o", "deferred": "s", "aligned": "^"}
    figure, axes = pyplot.subplots(figsize=(7.5, 4.5), dpi=150)
    axes.axvspan(0.56, 1.3, color="#888888", alpha=0.18, linewidth=0)
    axes.text(0.93, 0.99, "packed writes its\nfirst to tenth token", ha="center", va="top", fontsize=8, color="#555555")
    for name, rows in recall.items():
        at = [row["mean_s"] for row in rows]
        axes.plot(at, [row["value"] for row in rows], marker=markers[name], color=colours[name])
        low, high = ([row["value"] if row[end] is None else row[end] for row in rows] for end in ("low", "high"))
        axes.fill_between(at, low, high, color=colours[name], alpha=0.15)
        axes.annotate(name, (at[-1], rows[-1]["value"]), xytext=(8, 0), textcoords="offset points", va="center",
                      color=colours[name])  # fmt: skip
    axes.set(xlabel="the event begins at (s)", ylabel="recall", ylim=(0, 1), title="Which tags are found, by when they happen")
    axes.set_xlim(0, axes.get_xlim()[1] * 1.12)
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path)
    pyplot.close(figure)


def _options() -> argparse.Namespace:
    parser = options_of(__doc__, "layouts")
    parser.add_argument("--corpus-seed", type=int, default=11)
    parser.add_argument("--clips", type=json.loads, default={"train": 1200, "validation": 300, "test": 500})
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument(
        "--only", nargs="+", choices=VARIANTS, default=list(VARIANTS), metavar="NAME", help="run only these variants"
    )
    parser.add_argument("--fewest-events", type=int, default=10, help="leave out bins of the figure with fewer events")
    return parser.parse_args()


if __name__ == "__main__":
    main()
