"""Where should LoRA's parameters go? Place against size, three seeds, for `packed`, `deferred` and `aligned`.

    attention, r 16            the card's recipe
    attention, r 45            as many parameters as attention and MLP with r 16
    attention and MLP, r 16
    MLP, r 16

For each layout and adapter, the first seed is trained at two learning rates, then at twice or half of the better one, until the
rate with the lowest loss on the validation split has been tried from both sides. The other seeds are trained at that rate. The
rest of the recipe is the demo's (`configs/demo/`), alpha 4 × r. All results are on the test split.

Writes the results and the figure; `--document` also updates the document's tables.
"""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

from studies import (
    DEMO,
    Command,
    differences,
    each_seed,
    finish,
    measure_yardsticks,
    options_of,
    over_seeds,
    run_phases,
    score_over_seeds,
    signed,
    slug,
    systems_of,
    yardsticks_of,
)

from evoxtral_train.records import Prediction
from evoxtral_train.reporting.tables import interval, markdown_table

LAYOUTS = ("packed", "deferred", "aligned")


@dataclass(frozen=True)
class Adapter:
    modules: str
    r: int

    @property
    def settings(self) -> dict:
        modules = rf".*language_model.*\.({self.modules})_proj"
        return {"lora__r": self.r, "lora__alpha": 4 * self.r, "lora__target_modules": modules}


CARD, AS_LARGE, BOTH = "attention, r 16", "attention, r 45", "attention and MLP, r 16"
ADAPTERS = {
    CARD: Adapter("q|k|v|o", 16),
    AS_LARGE: Adapter("q|k|v|o", 45),
    BOTH: Adapter("q|k|v|o|gate|up|down", 16),
    "MLP, r 16": Adapter("gate|up|down", 16),
}
PLACE_AND_SIZE = ((AS_LARGE, CARD), (BOTH, CARD), (BOTH, AS_LARGE))
"""(after, before): more parameters in the same place; both; the same number of parameters in more places."""


def main() -> None:
    options = _options()
    logs = options.output / "logs"
    run_phases(data_phases(options), options.jobs, logs / "data")
    losses = search_rates(options, logs)
    rates = {which: min(tried, key=tried.get) for which, tried in losses.items()}
    run_phases(phases(options, rates), options.jobs, logs)
    content = {"seeds": options.seeds, "epochs": options.epochs, "clips": options.clips}
    content["yardsticks"] = yardsticks_of(options.output / "eval" / "yardsticks")
    content["layouts"] = {layout: _results(options, layout, losses) for layout in options.layouts}
    finish(options, content, sections(content))
    draw(content, options.output / "adapters.png")
    if options.document:
        draw(content, options.document.with_name("adapters.png"))


def data_phases(options: argparse.Namespace) -> list[list[Command]]:
    """Speak, and pack in each layout."""
    data = options.output / "data"
    clips = {f"clips__{split}": count for split, count in ({"raft": 0} | options.clips).items()}
    spoken = Command.of("data synth", DEMO / "synth.yaml", data, seed=options.corpus_seed, **clips)
    manifest = data / "manifest.jsonl"
    packs = [
        Command.of("data pack", DEMO / "pack.yaml", _packed(options, layout), manifest=manifest, layout__kind=layout)
        for layout in options.layouts
    ]
    return [[spoken], packs]


def search_rates(options: argparse.Namespace, logs: Path) -> dict[tuple[str, str], dict[float, float]]:
    """(layout, adapter) -> learning rate -> validation loss of the first seed, with the lowest loss not at either end."""
    rates = {(layout, name): sorted(options.rates) for layout in options.layouts for name in ADAPTERS}
    while True:
        trains = [_train(options, *which, rate, options.seeds[0]) for which, tried in rates.items() for rate in tried]
        run_phases([trains], options.jobs, logs / "rates")
        losses = {which: {rate: _trained(options, *which, rate)["best_validation_loss"] for rate in tried}
                  for which, tried in rates.items()}  # fmt: skip
        further = {which: next_rates(tried) for which, tried in losses.items()}
        if not any(further.values()):
            return losses
        rates = {which: sorted([*tried, *further[which]]) for which, tried in rates.items()}


def next_rates(losses: dict[float, float]) -> list[float]:
    """What to try after these rates: one beyond the lowest loss, if that lies at an end.

    >>> next_rates({1.0: 0.5, 2.0: 0.4}), next_rates({1.0: 0.3, 2.0: 0.4}), next_rates({1.0: 0.5, 2.0: 0.4, 4.0: 0.6})
    ([4.0], [0.5], [])
    """
    best = min(losses, key=losses.get)
    return [2 * best] if best == max(losses) else [best / 2] if best == min(losses) else []


def phases(options: argparse.Namespace, rates: dict[tuple[str, str], float]) -> list[list[Command]]:
    """Train the other seeds at the chosen rates, then decode the test split."""
    trains = [_train(options, *which, rate, seed) for which, rate in rates.items() for seed in options.seeds[1:]]
    evaluations = [measure_yardsticks(_packed(options, options.layouts[-1]), options.output / "eval" / "yardsticks")]
    for (layout, name), rate in rates.items():
        folders = {seed: _folder(options, layout, name, rate, seed) for seed in options.seeds}
        systems = ", ".join(f"{{name: seed {seed}, adapter: {folder}}}" for seed, folder in folders.items())
        evaluations.append(
            Command.of(
                "eval", DEMO / "eval-sft.yaml", options.output / "eval" / layout / slug(name), dataset=_packed(options, layout),
                systems=f"[{systems}]",
            )
        )  # fmt: skip
    return [trains, evaluations]


def _train(options: argparse.Namespace, layout: str, name: str, rate: float, seed: int) -> Command:
    return Command.of(
        "sft", DEMO / "sft.yaml", _folder(options, layout, name, rate, seed), dataset=_packed(options, layout),
        train__epochs=options.epochs, train__seed=seed, train__learning_rate=rate, **ADAPTERS[name].settings,
    )  # fmt: skip


def _packed(options: argparse.Namespace, layout: str) -> Path:
    return options.output / "packed" / layout


def _folder(options: argparse.Namespace, layout: str, name: str, rate: float, seed: int) -> Path:
    return options.output / "sft" / layout / slug(name) / f"rate-{rate:g}-seed-{seed}"


def _trained(options: argparse.Namespace, layout: str, name: str, rate: float) -> dict:
    folder = _folder(options, layout, name, rate, options.seeds[0])
    return json.loads((folder / "metrics.json").read_text("utf-8"))


def _results(options: argparse.Namespace, layout: str, losses: dict[tuple[str, str], dict[float, float]]) -> dict:
    rows = {name: systems_of(options.output / "eval" / layout / slug(name)) for name in ADAPTERS}
    adapters = {}
    for name in ADAPTERS:
        tried = losses[layout, name]
        rate = min(tried, key=tried.get)
        trained = _trained(options, layout, name, rate)["trainable_parameters"]
        searched = {f"{each:g}": loss for each, loss in tried.items()}
        adapters[name] = score_over_seeds(rows[name]) | {"rate": rate, "losses": searched, "trained": trained}
    against = {f"{after} against {before}": _against(rows[before], rows[after]) for after, before in PLACE_AND_SIZE}
    return {"adapters": adapters, "against": against}


def _against(before: dict[str, list[Prediction]], after: dict[str, list[Prediction]]) -> dict:
    """Differences with intervals over clips, and of micro F1 the interval over seeds."""
    seeds = sorted(before)
    gains = [differences(before[seed], after[seed])["micro_f1"]["value"] for seed in seeds]
    pooled = ([row for seed in seeds for row in rows[seed]] for rows in (before, after))
    return differences(*pooled) | {"micro_f1_over_seeds": over_seeds(gains)}


def sections(content: dict) -> dict[str, str]:
    """The document's tables, by marker name."""
    header = ["layout", "adapter", "trained", "rate", "micro F1", "each seed", "micro P", "micro R", "false tags / untagged clip"]
    rows = [
        ["—", name, "—", "—", interval(report["micro"]["f1"]), "—", interval(report["micro"]["precision"]),
         interval(report["micro"]["recall"]), interval(report["false_tags_per_untagged_clip"])]
        for name, report in content["yardsticks"].items()
    ]  # fmt: skip
    against, losses = [], []
    reports = [report for results in content["layouts"].values() for report in results["adapters"].values()]
    rates = sorted({rate for report in reports for rate in report["losses"]}, key=float)
    for layout, results in content["layouts"].items():
        for name, report in results["adapters"].items():
            measures = (report["micro"]["precision"], report["micro"]["recall"], report["false_tags_per_untagged_clip"])
            rows.append([
                layout, name, f"{report['trained']:,}", f"{report['rate']:g}", interval(report["micro"]["f1"]), each_seed(report),
                *map(interval, measures),
            ])  # fmt: skip
            tried = report["losses"]
            losses.append([layout, name, *(f"{tried[rate]:.3f}" if rate in tried else "—" for rate in rates)])
        for name, report in results["against"].items():
            measures = (report["micro_f1"], report["micro_f1_over_seeds"], report["false_tags_per_untagged_clip"])
            against.append([layout, name, *map(signed, measures)])
    return {
        "adapters": markdown_table(header, rows),
        "place and size": markdown_table(
            ["layout", "difference", "micro F1, over clips", "micro F1, over seeds", "false tags / untagged clip"], against
        ),
        "rates": markdown_table(["layout", "adapter", *(f"loss at {rate}" for rate in rates)], losses),
    }


def draw(content: dict, path: Path) -> None:
    """Micro F1 of each adapter, grouped by layout, with 95% intervals over clips and a dot for each seed."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7.5, 4.5), dpi=150)
    width, layouts = 0.8 / len(ADAPTERS), list(content["layouts"])
    for place, (name, colour) in enumerate(zip(ADAPTERS, ("#30638e", "#8fb0cc", "#d1495b", "#edae49"), strict=True)):
        at = [index + (place - (len(ADAPTERS) - 1) / 2) * width for index in range(len(layouts))]
        reports = [content["layouts"][layout]["adapters"][name] for layout in layouts]
        f1 = [report["micro"]["f1"] for report in reports]
        error = [[each["value"] - each["low"] for each in f1], [each["high"] - each["value"] for each in f1]]
        axes.bar(at, [each["value"] for each in f1], 0.9 * width, yerr=error, capsize=2, color=colour, label=name)
        for x, report in zip(at, reports, strict=True):
            seeds = report["micro_f1_of_seeds"]
            axes.plot([x] * len(seeds), seeds, "o", color="black", markersize=2.5)
    probe = content["yardsticks"]["probe"]["micro"]["f1"]["value"]
    axes.axhline(probe, color="#777777", linewidth=1, linestyle="--")
    axes.text(-0.48, probe + 0.01, "probe on the frozen audio", fontsize=8, color="#555555")
    axes.set(ylabel="micro F1", ylim=(0, 1), title="Where LoRA's parameters go, by layout")
    axes.set_xticks(range(len(layouts)), layouts)
    axes.legend(frameon=False, fontsize=8, ncols=2, loc="upper left")
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path)
    pyplot.close(figure)


def _options() -> argparse.Namespace:
    parser = options_of(__doc__, "adapters")
    parser.add_argument("--layouts", nargs="+", choices=LAYOUTS, default=list(LAYOUTS))
    parser.add_argument("--rates", type=float, nargs="+", default=[1.5e-3, 3e-3], help="learning rates to try first")
    parser.add_argument("--corpus-seed", type=int, default=11)
    parser.add_argument("--clips", type=json.loads, default={"train": 800, "validation": 200, "test": 500})
    parser.add_argument("--epochs", type=int, default=8)
    return parser.parse_args()


if __name__ == "__main__":
    main()
