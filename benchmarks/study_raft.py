"""What does RAFT gain, with the published reward and with ours? `make study`, after `study_layouts.py`.

Starts from the adapters of the layout study, one per seed. RAFT samples on clips that they were not trained on; on clips that
SFT has seen, candidates differ less. Arms: rewards `card` and `counts`, 4 and 8 candidates, one and three rounds, no gate;
and `counts` with `skip_without_spread` and reference replay. The rewards need references, so the same clips could be used for
SFT: "SFT on both" trains from scratch on the clips of SFT and RAFT together, with as many optimizer steps as SFT plus three
rounds. All results are on the layout study's test split.
"""

import argparse
import json
from dataclasses import dataclass, field
from pathlib import Path

from studies import (
    DEMO,
    YARDSTICKS,
    Command,
    differences,
    each_seed,
    finish,
    options_of,
    run_phases,
    score_over_seeds,
    signed,
    slug,
    systems_of,
    yardsticks_of,
)

from evoxtral_train.config.loader import load_config
from evoxtral_train.config.training import RaftConfig
from evoxtral_train.files import write_atomic
from evoxtral_train.records import Prediction, dump_row, read_jsonl
from evoxtral_train.reporting.tables import interval, markdown_table

ROUNDS = 3
REPORTED = (1, ROUNDS)
BOTH = "SFT on both"


@dataclass(frozen=True)
class Arm:
    profile: str
    candidates: int
    settings: dict = field(default_factory=dict)


ARMS = {
    "card, N 4": Arm("card", 4),
    "card, N 8": Arm("card", 8),
    "counts, N 4": Arm("counts", 4),
    "counts, N 8": Arm("counts", 8),
    "counts, N 4, skip and replay": Arm("counts", 4, {"curate__skip_without_spread": True, "curate__reference_replay": 0.5}),
}


def main() -> None:
    options = _options()
    if not (options.layouts / "results.json").is_file():
        raise SystemExit(f"{options.layouts}: no finished study; first run: python benchmarks/study_layouts.py")
    run_phases(data_phases(options), options.jobs, options.output / "logs" / "data")
    write_both(options)
    run_phases(phases(options), options.jobs, options.output / "logs")
    predictions = {"SFT": systems_of(options.layouts / "eval" / options.layout / "test")}
    predictions[BOTH] = systems_of(options.output / "eval" / "both")
    for name in ARMS:
        systems = systems_of(options.output / "eval" / slug(name))
        for number in REPORTED:
            by_seed = {f"seed {seed}": systems[f"seed {seed} round {number}"] for seed in options.seeds}
            predictions[f"{name}, {number} round{'s' * (number > 1)}"] = by_seed
    before = _pooled(predictions["SFT"])
    systems = {
        name: score_over_seeds(rows) | {"against_sft": differences(before, _pooled(rows))} for name, rows in predictions.items()
    }
    systems = yardsticks_of(options.layouts / "eval" / "yardsticks") | systems
    content = {"layout": options.layout, "seeds": options.seeds, "clips": options.clips, "systems": systems,
               "rounds": {name: _rounds(options, name) for name in ARMS}}  # fmt: skip
    finish(options, content, sections(content))
    draw(systems, options.output / "raft.png")
    if options.document:
        draw(systems, options.document.with_name("raft.png"))


def data_phases(options: argparse.Namespace) -> list[list[Command]]:
    folder = options.output / "data"
    clips = {"clips__train": options.clips, "clips__validation": 1, "clips__test": 1, "clips__raft": 0}
    return [
        [Command.of("data synth", DEMO / "synth.yaml", folder, seed=options.corpus_seed, **clips)],
        [_pack(options, "packed", folder / "manifest.jsonl")],
    ]


def write_both(options: argparse.Namespace) -> None:
    """Write the manifest of "SFT on both": the training clips of both corpora, and SFT's validation clips."""
    rows = []
    for prefix, folder, splits in (("", options.layouts, ("train", "validation")), ("raft-", options.output, ("train",))):
        path = folder / "data" / "manifest.jsonl"
        for _, row in read_jsonl(path):
            if row["split"] in splits:
                rows.append(row | {"id": prefix + row["id"], "audio": str((path.parent / row["audio"]).resolve())})
    write_atomic(options.output / "both.jsonl", "".join(map(dump_row, rows)))


def phases(options: argparse.Namespace) -> list[list[Command]]:
    root, layout = options.output, options.layout
    dataset, both, epochs = root / "packed", root / "packed-both", epochs_on_both(options)
    runs, evaluations = [], []
    for name, arm in ARMS.items():
        systems = {}
        for seed in options.seeds:
            output = root / "runs" / slug(name) / f"seed-{seed}"
            settings = {
                "adapter": options.layouts / "sft" / layout / f"seed-{seed}", "dataset": dataset, "split": "train",
                "gate__split": "null",
                "rounds": f"[{', '.join(['{}'] * ROUNDS)}]", "generate__candidates": arm.candidates, "generate__seed": 100 * seed,
                "train__seed": 100 * seed, "score__profile": arm.profile, "score__verifier": "null", **arm.settings,
            }  # fmt: skip
            runs.append(Command.of("raft run", DEMO / "raft.yaml", output, result="result", **settings))
            systems |= {f"seed {seed} round {number}": output / f"round-{number}/train" for number in REPORTED}
        evaluations.append(_evaluate(options, slug(name), systems))
    runs.sort(key=lambda command: "N-8" not in str(command.result))  # the longest first
    folders = {seed: root / "runs" / "both" / f"seed-{seed}" for seed in options.seeds}
    for seed, folder in folders.items():
        runs.append(Command.of("sft", DEMO / "sft.yaml", folder, dataset=both, train__epochs=epochs, train__seed=seed))
    evaluations.append(_evaluate(options, "both", {f"seed {seed}": folder for seed, folder in folders.items()}))
    return [[_pack(options, "packed-both", root / "both.jsonl")], runs, evaluations]


def epochs_on_both(options: argparse.Namespace) -> float:
    """Epochs that give as many steps as SFT and all rounds together, up to rounding."""
    sft = json.loads((options.layouts / "results.json").read_text("utf-8"))
    raft_clips = options.clips * (1 - load_config(DEMO / "raft.yaml", RaftConfig).curate.drop_lowest_share)
    seen = sft["epochs"] * sft["clips"]["train"] + ROUNDS * raft_clips
    return round(seen / (sft["clips"]["train"] + options.clips), 2)


def _pack(options: argparse.Namespace, name: str, manifest: Path) -> Command:
    return Command.of("data pack", DEMO / "pack.yaml", options.output / name, manifest=manifest, layout__kind=options.layout)


def _evaluate(options: argparse.Namespace, name: str, adapters: dict[str, Path]) -> Command:
    systems = ", ".join(f"{{name: {system}, adapter: {adapter}}}" for system, adapter in adapters.items())
    dataset = options.layouts / "packed" / options.layout
    output = options.output / "eval" / name
    return Command.of("eval", DEMO / "eval-raft.yaml", output, dataset=dataset, systems=f"[{systems}]")


def _pooled(rows: dict[str, list[Prediction]]) -> list[Prediction]:
    return [row for seed in sorted(rows) for row in rows[seed]]


def _rounds(options: argparse.Namespace, name: str) -> list[dict]:
    """The rounds of an arm; each measure is a mean over the seeds."""
    folders = [options.output / "runs" / slug(name) / f"seed-{seed}" / "result" for seed in options.seeds]
    seeds = [json.loads((folder / "metrics.json").read_text("utf-8"))["rounds"][1:] for folder in folders]
    measures = ("greedy_reward", "mean_reward", "best_reward", "clips_without_spread_share", "curated", "replayed")
    return [{each: sum(row[each] for row in rows) / len(rows) for each in measures} for rows in zip(*seeds, strict=True)]


def sections(content: dict) -> dict[str, str]:
    """The document's tables, by marker name."""
    header = ["system", "micro F1", "each seed", "micro halluc.", "false tags / untagged clip", "tags / clip"]
    rows, against = [], []
    for name, report in content["systems"].items():
        measures = (report["micro"]["hallucination"], report["false_tags_per_untagged_clip"], report["tags_per_clip"])
        rows.append([name, interval(report["micro"]["f1"]), each_seed(report), *map(interval, measures)])
        if name not in ("SFT", *YARDSTICKS):
            against.append([name, *map(signed, report["against_sft"].values())])
    sampled = [
        [f"{name}, round {number}", *(f"{row[each]:.3f}" for each in ("greedy_reward", "mean_reward", "best_reward")),
         f"{row['clips_without_spread_share']:.0%}", f"{row['curated']:.0f}", f"{row['replayed']:.0f}"]
        for name, rounds in content["rounds"].items() for number, row in enumerate(rounds, start=1)
    ]  # fmt: skip
    return {
        "systems": markdown_table(header, rows),
        "against SFT": markdown_table(
            ["system", "micro F1", "micro halluc.", "false tags / untagged clip", "tags / clip"], against
        ),
        "rounds": markdown_table(
            ["arm and round", "greedy reward", "mean of N", "best of N", "clips without spread", "curated", "replayed"], sampled
        ),
    }


def draw(systems: dict[str, dict], path: Path) -> None:
    """Micro F1 against false tags per untagged clip: SFT, and each arm's change from it."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    colours = ["#d1495b", "#edae49", "#30638e", "#00798c", "#6a4c93"]
    figure, axes = pyplot.subplots(figsize=(7.5, 4.8), dpi=150)
    at = {name: (report["false_tags_per_untagged_clip"], report["micro"]["f1"]) for name, report in systems.items()}
    both_tags, both_f1 = at[BOTH]
    axes.errorbar(
        both_tags["value"], both_f1["value"], xerr=_error(both_tags), yerr=_error(both_f1), color="#777777", marker="D",
        markersize=6, capsize=2, label=BOTH,
    )  # fmt: skip
    for colour, arm in zip(colours, ARMS, strict=True):
        path_of_arm = [at["SFT"], *(at[name] for name in at if name.startswith(f"{arm}, ") and name[len(arm) + 2].isdigit())]
        x, y = ([measure[axis]["value"] for measure in path_of_arm] for axis in (0, 1))
        axes.plot(x, y, color=colour, marker="o", markersize=4, label=arm)
        for false_tags, f1 in path_of_arm[1:]:
            axes.errorbar(
                false_tags["value"], f1["value"], xerr=_error(false_tags), yerr=_error(f1), color=colour, alpha=0.25, capsize=2
            )
    x, y = at["SFT"]
    axes.errorbar(x["value"], y["value"], xerr=_error(x), yerr=_error(y), color="black", marker="*", markersize=13, capsize=2,
                  label="SFT", zorder=5)  # fmt: skip
    axes.set(xlabel="false tags per untagged clip", ylabel="micro F1", title=f"From SFT through 1 and {ROUNDS} rounds of RAFT")
    axes.legend(frameon=False, fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path)
    pyplot.close(figure)


def _error(measure: dict) -> list[list[float]]:
    return [[measure["value"] - measure["low"]], [measure["high"] - measure["value"]]]


def _options() -> argparse.Namespace:
    parser = options_of(__doc__, "raft")
    parser.add_argument("--layouts", type=Path, default=Path("runs/studies/layouts"), help="the finished layout study")
    parser.add_argument("--layout", default="deferred")
    parser.add_argument("--corpus-seed", type=int, default=12)
    parser.add_argument("--clips", type=int, default=1200, help="number of clips that RAFT samples on")
    return parser.parse_args()


if __name__ == "__main__":
    main()
