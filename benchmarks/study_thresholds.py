"""Do thresholds per tag beat one threshold, and one threshold none? `make study`, with the demo's recipe.

Trains the demo's adapter with each seed, fits thresholds on the validation clips with `evoxtral calibrate`, and evaluates on the
test clips. The other arms are fitted on the same predictions: one threshold for all tags; own thresholds, mixed with all tags or
not; a limit on false tags; and the same on the split `raft`, five times as many clips, which SFT has not seen either.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path

from studies import DEMO, Command, differences, each_seed, finish, options_of, run_phases, score_over_seeds, systems_of

from evoxtral_train.records import Prediction, read_rows
from evoxtral_train.reporting.tables import interval, markdown_table
from evoxtral_train.scoring.calibration import filtered
from evoxtral_train.scoring.tag_filter import TagFilter, Thresholds
from evoxtral_train.scoring.thresholds import NONE, ONE, Fitted, fit, fit_shared, measure

FALSE_TAGS_MAX = 0.05
BEFORE, ONE_FOR_ALL, CHOSEN = "no threshold", "one threshold", "as calibrate chooses"
ARMS: dict[str, Callable[[Sequence[Prediction]], Thresholds]] = {
    ONE_FOR_ALL: lambda rows: fit_shared(rows, ONE),
    "own, mixed with 80 tags": lambda rows: fit_shared(rows, 80),
    "own, mixed with 20 tags": lambda rows: fit_shared(rows, 20),
    "own, not mixed": lambda rows: fit_shared(rows, 0),
    f"at most {FALSE_TAGS_MAX} false tags": lambda rows: fit(rows, FALSE_TAGS_MAX).thresholds,
}


def main() -> None:
    options = _options()
    run_phases(phases(options), options.jobs, options.output / "logs")
    calibrated = {seed: _folder(options, "calibrate", seed) / "predictions.jsonl" for seed in options.seeds}
    validation = {seed: read_rows(path, Prediction) for seed, path in calibrated.items()}
    more = {seed: systems_of(_folder(options, "eval-raft", seed))["SFT"] for seed in options.seeds}
    evaluated = {seed: systems_of(_folder(options, "eval", seed)) for seed in options.seeds}
    test = {seed: systems["SFT"] for seed, systems in evaluated.items()}
    predictions = {BEFORE: test, CHOSEN: {seed: systems["calibrated"] for seed, systems in evaluated.items()}}
    for name, arm in ARMS.items():
        predictions[name] = {seed: _kept(test[seed], arm(validation[seed])) for seed in options.seeds}
    fits = {seed: fit(rows) for seed, rows in more.items()}
    clips = len(next(iter(more.values())))
    for name in (ONE_FOR_ALL, "own, mixed with 20 tags"):
        predictions[f"{name}; {clips} clips"] = {seed: _kept(test[seed], ARMS[name](more[seed])) for seed in options.seeds}
    predictions[f"{CHOSEN}; {clips} clips"] = {seed: _kept(test[seed], fits[seed].thresholds) for seed in options.seeds}
    pooled = {name: [row for seed in options.seeds for row in rows[seed]] for name, rows in predictions.items()}
    systems = {
        name: score_over_seeds(rows) | {
            f"against {other}": differences(pooled[other], pooled[name]) for other in (BEFORE, ONE_FOR_ALL)
        }
        for name, rows in predictions.items()
    }
    content = {
        "seeds": options.seeds, "clips": {"validation": len(validation[options.seeds[0]]), "raft": clips}, "systems": systems,
        "fits": {
            split: [_fit_row(seed, fits_of[seed], test[seed]) for seed in options.seeds]
            for split, fits_of in (("validation", {seed: fit(rows) for seed, rows in validation.items()}), ("raft", fits))
        },
    }  # fmt: skip
    finish(options, content, sections(content))


def phases(options: argparse.Namespace) -> list[list[Command]]:
    data, dataset = options.output / "data", options.output / "packed"
    clips = {f"clips__{split}": count for split, count in options.clips.items()}
    spoken = Command.of("data synth", DEMO / "synth.yaml", data, **clips)
    pack = Command.of("data pack", DEMO / "pack.yaml", dataset, manifest=data / "manifest.jsonl")
    train, calibrate, evaluate = [], [], []
    for seed in options.seeds:
        adapter = _folder(options, "sft", seed)
        train.append(Command.of("sft", DEMO / "sft.yaml", adapter, dataset=dataset, train__seed=seed))
        folder = _folder(options, "calibrate", seed)
        calibrate.append(Command.of("calibrate", DEMO / "calibrate.yaml", folder, dataset=dataset, adapter=adapter))
        plain = f"{{name: SFT, adapter: {adapter}}}"
        systems = f"[{plain}, {{name: calibrated, adapter: {adapter}, thresholds: true}}]"
        for name, settings in (("eval", {"systems": systems}), ("eval-raft", {"systems": f"[{plain}]", "split": "raft"})):
            folder = _folder(options, name, seed)
            evaluate.append(Command.of("eval", DEMO / "eval-sft.yaml", folder, dataset=dataset, **settings))
    return [[spoken], [pack], train, calibrate, evaluate]


def _folder(options: argparse.Namespace, name: str, seed: int) -> Path:
    return options.output / name / f"seed-{seed}"


def _kept(rows: Sequence[Prediction], thresholds: Thresholds) -> list[Prediction]:
    return [filtered(row, TagFilter(thresholds=thresholds)) for row in rows]


def _fit_row(seed: int, fitted: Fitted, test: Sequence[Prediction]) -> dict:
    """One seed: what was chosen, and micro F1 and false tags where it was fitted, held out, and on the test clips."""
    chosen = {NONE: "none", ONE: "one"}.get(fitted.shared, f"own, mixed with {fitted.shared}")
    parts = {"before": fitted.before, "after": fitted.after, "held_out": fitted.held_out}
    parts |= {"test_before": measure(test), "test": measure(_kept(test, fitted.thresholds))}
    return {"seed": seed, "chosen": chosen, "default": fitted.thresholds.default, **parts}


def sections(content: dict) -> dict[str, str]:
    """The document's tables, by marker name."""
    rows, against = [], {BEFORE: [], ONE_FOR_ALL: []}
    for name, report in content["systems"].items():
        micro = report["micro"]
        measures = (micro["precision"], micro["recall"], report["false_tags_per_untagged_clip"])
        rows.append([name, interval(micro["f1"]), each_seed(report), *map(interval, measures)])
        for other, lines in against.items():
            if name not in (BEFORE, other):
                changes = report[f"against {other}"]
                lines.append([name, _tested(changes["micro_f1"]), _tested(changes["false_tags_per_untagged_clip"])])
    fits = [
        [str(content["clips"][split]), str(row["seed"]), row["chosen"], f"{row['default']:.2f}",
         *(f"{row[part]['micro_f1']:.3f} / {row[part]['false_tags_per_untagged_clip']:.3f}"
           for part in ("before", "after", "held_out", "test_before", "test"))]
        for split, seeds in content["fits"].items() for row in seeds
    ]  # fmt: skip
    return {
        "systems": markdown_table(
            ["thresholds", "micro F1", "each seed", "precision", "recall", "false tags / untagged clip"], rows
        ),
        **{
            f"against {other}": markdown_table(["thresholds", "micro F1", "false tags / untagged clip"], lines)
            for other, lines in against.items()
        },
        "fits": markdown_table(
            ["clips", "seed", "chosen", "one threshold", "before", "after", "held out", "test before", "test after"], fits
        ),
    }


def _tested(measure: dict) -> str:
    return f"{measure['value']:+.3f} [{measure['low']:+.3f}, {measure['high']:+.3f}], p {measure['p']:.3f}"


def _options() -> argparse.Namespace:
    parser = options_of(__doc__, "thresholds")
    parser.add_argument("--clips", type=json.loads, default={"train": 1200, "validation": 120, "test": 200, "raft": 600})
    return parser.parse_args()


if __name__ == "__main__":
    main()
