"""Where should LoRA's parameters go? Place against size, three seeds, for `packed`, `deferred` and `aligned`.

    attention, r 16            the card's recipe
    attention, r 45            as many parameters as attention and MLP with r 16
    attention and MLP, r 16
    MLP, r 16

Each adapter is first trained at every learning rate with the first seed, for each layout; the rate with the lowest loss on the
validation split is kept, and the other seeds are trained at it. The rest of the recipe is the demo's (`configs/demo/`), alpha
4 × r. All results are on the test split.

Writes the results and the figure; `--document` also updates the document's tables.
"""

import argparse
import json
import os
from dataclasses import dataclass
from pathlib import Path

from studies import (
    DEMO,
    Command,
    differences,
    each_seed,
    measure_yardsticks,
    over_seeds,
    publish,
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
    run_phases(rate_phases(options), options.jobs, logs / "rates")
    rates = {(layout, name): best_rate(options, layout, name) for layout in options.layouts for name in ADAPTERS}
    run_phases(phases(options, rates), options.jobs, logs)
    content = {"seeds": options.seeds, "epochs": options.epochs, "clips": options.clips, "rates": options.rates}
    content["yardsticks"] = yardsticks_of(options.output / "eval" / "yardsticks")
    content["layouts"] = {layout: _results(options, layout, rates) for layout in options.layouts}
    (options.output / "results.json").write_text(json.dumps(content, indent=1), "utf-8")
    draw(content, options.output / "adapters.png")
    print("\n\n".join(sections(content).values()))
    if options.document:
        publish(options.document, sections(content), content)
        draw(content, options.document.with_name("adapters.png"))


def rate_phases(options: argparse.Namespace) -> list[list[Command]]:
    """Speak, pack in each layout, and train each adapter at each rate with the first seed."""
    data = options.output / "data"
    clips = {f"clips__{split}": count for split, count in ({"raft": 0} | options.clips).items()}
    spoken = Command.of("data synth", DEMO / "synth.yaml", data, seed=options.corpus_seed, **clips)
    manifest = data / "manifest.jsonl"
    packs = [
        Command.of("data pack", DEMO / "pack.yaml", _packed(options, layout), manifest=manifest, layout__kind=layout)
        for layout in options.layouts
    ]
    trains = [
        _train(options, layout, name, rate, options.seeds[0])
        for layout in options.layouts for name in ADAPTERS for rate in options.rates
    ]  # fmt: skip
    return [[spoken], packs, trains]


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


def best_rate(options: argparse.Namespace, layout: str, name: str) -> float:
    """The rate with the lowest loss on the validation split, with the first seed."""
    return min(options.rates, key=lambda rate: _trained(options, layout, name, rate)["best_validation_loss"])


def _trained(options: argparse.Namespace, layout: str, name: str, rate: float) -> dict:
    folder = _folder(options, layout, name, rate, options.seeds[0])
    return json.loads((folder / "metrics.json").read_text("utf-8"))


def _results(options: argparse.Namespace, layout: str, rates: dict[tuple[str, str], float]) -> dict:
    rows = {name: systems_of(options.output / "eval" / layout / slug(name)) for name in ADAPTERS}
    adapters = {}
    for name in ADAPTERS:
        losses = {rate: _trained(options, layout, name, rate)["best_validation_loss"] for rate in options.rates}
        trained = _trained(options, layout, name, rates[layout, name])["trainable_parameters"]
        adapters[name] = score_over_seeds(rows[name]) | {"rate": rates[layout, name], "losses": losses, "trained": trained}
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
    for layout, results in content["layouts"].items():
        for name, report in results["adapters"].items():
            measures = (report["micro"]["precision"], report["micro"]["recall"], report["false_tags_per_untagged_clip"])
            rows.append([
                layout, name, f"{report['trained']:,}", f"{report['rate']:g}", interval(report["micro"]["f1"]), each_seed(report),
                *map(interval, measures),
            ])  # fmt: skip
            losses.append([layout, name, *(f"{loss:.3f}" for loss in report["losses"].values())])
        for name, report in results["against"].items():
            measures = (report["micro_f1"], report["micro_f1_over_seeds"], report["false_tags_per_untagged_clip"])
            against.append([layout, name, *map(signed, measures)])
    return {
        "adapters": markdown_table(header, rows),
        "place and size": markdown_table(
            ["layout", "difference", "micro F1, over clips", "micro F1, over seeds", "false tags / untagged clip"], against
        ),
        "rates": markdown_table(["layout", "adapter", *(f"validation loss at {rate:g}" for rate in content["rates"])], losses),
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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/studies/adapters"))
    parser.add_argument("--document", type=Path, help="Markdown file whose tables to update")
    parser.add_argument("--layouts", nargs="+", choices=LAYOUTS, default=list(LAYOUTS))
    parser.add_argument("--rates", type=float, nargs="+", default=[7.5e-4, 1.5e-3, 3e-3], help="learning rates to try")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="seeds of adapter initialisation and row order")
    parser.add_argument("--corpus-seed", type=int, default=11)
    parser.add_argument("--clips", type=json.loads, default={"train": 800, "validation": 200, "test": 500})
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="commands to run at a time; use 1 on a GPU")
    return parser.parse_args()


if __name__ == "__main__":
    main()
