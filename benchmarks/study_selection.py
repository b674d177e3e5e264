"""What is RAFT's selection worth, and what are labels worth? Equal steps, three seeds.

Every arm starts from the same SFT adapter and trains on as many rows, for as many steps, at the same rate. The rows are

    SFT more steps         the references of SFT's own clips
    random of 4            on clips that SFT has not seen: one of the adapter's own four answers
    agreement of 4         the answer whose tags agree most with the other three
    verifier               the best by `evoxtral probe`, which was fitted on SFT's clips; reads no reference
    card, counts           the best by the rewards that read a reference
    references             the references themselves

Each is measured as it is, and with the thresholds that `evoxtral calibrate` fits on the validation clips. All results are on the
test split. The lowest tenth of clips is dropped by what each arm knows: its reward, its agreement, or at random.

Writes the results; `--document` also updates the document's tables.
"""

import argparse
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import fmean

import numpy as np
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

from evoxtral_train.config.loader import load_config
from evoxtral_train.config.training import RaftConfig
from evoxtral_train.dataset.reader import PackedSplit
from evoxtral_train.files import fingerprint_files
from evoxtral_train.raft.curation import clips_kept
from evoxtral_train.records import Candidate, CuratedRow, Prediction, read_rows
from evoxtral_train.reporting.tables import interval, markdown_table
from evoxtral_train.run_folders import is_complete
from evoxtral_train.runs import Options
from evoxtral_train.scoring import tag_counts
from evoxtral_train.scoring.tag_counts import TagCounts
from evoxtral_train.stages.raft.rounds import RaftRound
from evoxtral_train.text.tags import find_tags

CANDIDATES = 4
SFT, MORE, REFERENCES = "SFT", "SFT more steps", "references"
REWARDS = ("verifier", "card", "counts")
MEASURES = ("micro_f1", "false_tags_per_untagged_clip")
ARMS = (MORE, "random of 4", "agreement of 4", *REWARDS, REFERENCES)


def main() -> None:
    options = _options()
    logs = options.output / "logs"
    run_phases(candidate_phases(options), options.jobs, logs / "candidates")
    for seed in options.seeds:
        for name in ARMS:
            _choose(options, name, seed)
    run_phases(phases(options), options.jobs, logs)
    rows = {f"seed {seed}": systems_of(options.output / "eval" / f"seed-{seed}") for seed in options.seeds}
    predictions = {
        (name, calibrated): {seed: systems[_system(name, calibrated)] for seed, systems in rows.items()}
        for calibrated in (False, True) for name in (SFT, *ARMS)
    }  # fmt: skip
    content = {"seeds": options.seeds, "clips": options.clips, "rows": _rows_of_an_arm(options)}
    content["yardsticks"] = yardsticks_of(options.output / "eval" / "yardsticks")
    content["systems"] = {
        _system(*key): score_over_seeds(rows) | {"against_sft": _against(predictions[SFT, key[1]], rows)}
        for key, rows in predictions.items()
    }
    finish(options, content, sections(content))
    draw(content, options.output / "selection.png")
    if options.document:
        draw(content, options.document.with_name("selection.png"))


def _system(name: str, calibrated: bool) -> str:
    return f"{name} with thresholds" if calibrated else name


def candidate_phases(options: argparse.Namespace) -> list[list[Command]]:
    """Speak and pack; SFT with each seed, and the probe; four answers to each clip of the split raft."""
    data, packed = options.output / "data", options.output / "packed"
    clips = {f"clips__{split}": count for split, count in options.clips.items()}
    spoken = Command.of("data synth", DEMO / "synth.yaml", data, seed=options.corpus_seed, **clips)
    pack = Command.of("data pack", DEMO / "pack.yaml", packed, manifest=data / "manifest.jsonl")
    trained = [
        Command.of("sft", DEMO / "sft.yaml", _sft(options, seed), dataset=packed, train__epochs=options.epochs, train__seed=seed)
        for seed in options.seeds
    ]
    probe = Command.of("probe", DEMO / "probe.yaml", options.output / "probe", dataset=packed, probabilities="[raft]")
    generated = []
    for seed in options.seeds:
        generated.append(_raft("generate", options, "candidates", seed))
        # `raft train` needs candidates of the clips that it trains on; "SFT more steps" does not use them.
        shortest = {"generate__candidates": 1, "generate__max_new_tokens": 1, "generate__greedy": "false"}
        generated.append(_raft("generate", options, MORE, seed, **shortest))
    return [[spoken], [pack], trained, [probe], generated]


def phases(options: argparse.Namespace) -> list[list[Command]]:
    """Score and curate where a reward chooses; train every arm; calibrate; decode the test split."""
    scored, curated, trained, calibrated = [], [], [], []
    evaluated = [measure_yardsticks(options.output / "packed", options.output / "eval" / "yardsticks")]
    for seed in options.seeds:
        adapters = {SFT: _sft(options, seed)}
        for name in ARMS:
            if name in REWARDS:
                scored.append(_raft("score", options, name, seed))
                curated.append(_raft("curate", options, name, seed))
            trained.append(_raft("train", options, name, seed))
            adapters[name] = trained[-1].result
        for name, adapter in adapters.items():
            folder = options.output / "calibrate" / f"seed-{seed}" / slug(name)
            settings = {"dataset": options.output / "packed", "adapter": adapter}
            calibrated.append(Command.of("calibrate", DEMO / "calibrate.yaml", folder, **settings))
        systems = [
            f"{{name: '{_system(name, calibrated)}', adapter: {adapter}, thresholds: {str(calibrated).lower()}}}"
            for name, adapter in adapters.items() for calibrated in (False, True)
        ]  # fmt: skip
        folder = options.output / "eval" / f"seed-{seed}"
        settings = {"dataset": options.output / "packed", "systems": f"[{', '.join(systems)}]"}
        evaluated.append(Command.of("eval", DEMO / "eval-raft.yaml", folder, **settings))
    return [scored, curated, trained, calibrated, evaluated]


def _raft(step: str, options: argparse.Namespace, name: str, seed: int, **settings) -> Command:
    """A step of an arm's only round."""
    config = _config(options, name, seed)
    folder = RaftRound.of(config, 1).folder(step).relative_to(config.output)
    return Command.of(f"raft {step}", DEMO / "raft.yaml", config.output, str(folder), **_settings(options, name, seed) | settings)


def _settings(options: argparse.Namespace, name: str, seed: int) -> dict:
    profile = name if name in REWARDS else "counts"
    return {
        "dataset": options.output / "packed", "split": "train" if name == MORE else "raft", "rounds": "[{}]",
        "adapter": _sft(options, seed), "gate__split": "null", "generate__candidates": CANDIDATES, "generate__seed": 100 * seed,
        "train__seed": 100 * seed, "score__profile": profile,
        "score__verifier": options.output / "probe" if profile == "verifier" else "null",
    }  # fmt: skip


def _config(options: argparse.Namespace, name: str, seed: int) -> RaftConfig:
    changes = {"output": options.output / "runs" / f"seed-{seed}" / slug(name), "tracking.mode": "disabled"}
    changes |= {key.replace("__", "."): value for key, value in _settings(options, name, seed).items()}
    return load_config(DEMO / "raft.yaml", RaftConfig, [f"{key}={value}" for key, value in changes.items()])


def _sft(options: argparse.Namespace, seed: int) -> Path:
    return options.output / "sft" / f"seed-{seed}"


def _rows_of_an_arm(options: argparse.Namespace) -> int:
    return clips_kept(options.clips["raft"], _config(options, "card", options.seeds[0]).curate)


def _choose(options: argparse.Namespace, name: str, seed: int) -> None:
    """Give an arm its candidates; for an arm without a reward, also write the rows that it trains on, as `raft curate` would."""
    round_ = RaftRound.of(_config(options, name, seed), 1)
    if name != MORE and not is_complete(round_.candidates):
        shutil.copytree(RaftRound.of(_config(options, "candidates", seed), 1).candidates, round_.candidates)
    if name in REWARDS or is_complete(round_.curated):
        return
    rng, count = np.random.default_rng(seed), _rows_of_an_arm(options)
    rows = list(_RULES.get(name, _references)(round_, rng))
    rows *= -(-count // len(rows))  # SFT's own clips may be fewer: they are seen more than once
    best = sorted(range(len(rows)), key=lambda index: -rows[index].reward)[:count]
    with round_.job("curate", Options(overwrite=True)).opened(round_.require_candidates()) as work:
        work.run.write_rows("curated.jsonl", (rows[index] for index in sorted(best)))
        work.done({"curated": len(best)}, fingerprint_files([work.path / "curated.jsonl"]))


def _references(round_: RaftRound, rng: np.random.Generator) -> Iterator[CuratedRow]:
    """Each with a random reward: those that are dropped are drawn."""
    for example in PackedSplit(round_.config.dataset, round_.config.split).examples:
        yield CuratedRow(example.id, 0, example.target_text, example.target_ids, rng.random())


def _random(round_: RaftRound, rng: np.random.Generator) -> Iterator[CuratedRow]:
    for candidates in _clips(round_):
        yield _curated(candidates[rng.integers(len(candidates))], rng.random())


def _agreement(round_: RaftRound, rng: np.random.Generator) -> Iterator[CuratedRow]:
    """The reward is the mean tag F1 with the clip's other candidates; ties go to the first, as in curation."""
    for candidates in _clips(round_):
        rewards = [fmean(_tag_f1(other, each) for other in candidates if other is not each) for each in candidates]
        best = int(np.argmax(rewards))
        yield _curated(candidates[best], rewards[best])


def _tag_f1(reference: Candidate, candidate: Candidate) -> float:
    return tag_counts.f1(TagCounts.of(find_tags(reference.text), find_tags(candidate.text)))


_RULES: dict[str, Callable[[RaftRound, np.random.Generator], Iterator[CuratedRow]]] = {
    "random of 4": _random,
    "agreement of 4": _agreement,
}


def _clips(round_: RaftRound) -> Iterator[Sequence[Candidate]]:
    rows = read_rows(round_.candidates / "candidates.jsonl", Candidate)
    return (rows[start : start + CANDIDATES] for start in range(0, len(rows), CANDIDATES))


def _curated(candidate: Candidate, reward: float) -> CuratedRow:
    return CuratedRow(candidate.utterance_id, candidate.candidate_id, candidate.text, candidate.token_ids, reward)


def _against(before: dict[str, list[Prediction]], after: dict[str, list[Prediction]]) -> dict:
    """Differences with intervals over clips, and of micro F1 and false tags with intervals over seeds."""
    seeds = sorted(before)
    pooled = ([row for seed in seeds for row in rows[seed]] for rows in (before, after))
    by_seed = [differences(before[seed], after[seed]) for seed in seeds]
    return differences(*pooled) | {
        f"{name}_over_seeds": over_seeds([each[name]["value"] for each in by_seed]) for name in MEASURES
    }


def sections(content: dict) -> dict[str, str]:
    """The document's tables, by marker name."""
    rows, against = [], []
    for name, report in (content["yardsticks"] | content["systems"]).items():
        measures = (report["micro"]["precision"], report["micro"]["recall"], report["false_tags_per_untagged_clip"])
        rows.append([name, interval(report["micro"]["f1"]), each_seed(report), *map(interval, measures)])
    for name, report in content["systems"].items():
        if name not in (SFT, _system(SFT, True)):
            change = report["against_sft"]
            against.append([name, *(signed(change[f"{each}{over}"]) for each in MEASURES for over in ("", "_over_seeds"))])
    return {
        "systems": markdown_table(["system", "micro F1", "each seed", "micro P", "micro R", "false tags / untagged clip"], rows),
        "against SFT": markdown_table(
            ["system", "micro F1, over clips", "micro F1, over seeds", "false tags / untagged clip, over clips", "over seeds"],
            against,
        ),
    }


def draw(content: dict, path: Path) -> None:
    """Each arm's differences from SFT with 95% intervals over clips, as it is and with thresholds on both."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, 2, figsize=(9, 4), dpi=150, sharey=True)
    titles = ("micro F1 (right: better)", "false tags per untagged clip (left: better)")
    for axes, measure, title in zip(panels, MEASURES, titles, strict=True):
        for calibrated, colour in ((False, "#30638e"), (True, "#d1495b")):
            changes = [content["systems"][_system(name, calibrated)]["against_sft"][measure] for name in ARMS]
            values = [change["value"] for change in changes]
            error = np.abs([[change[end] - change["value"] for change in changes] for end in ("low", "high")])
            at = [place + (0.15 if calibrated else -0.15) for place in range(len(ARMS))]
            label = "with thresholds" if calibrated else "as trained"
            axes.errorbar(values, at, xerr=error, fmt="o", color=colour, capsize=3, markersize=5, label=label)
        axes.axvline(0, color="#777777", linewidth=1)
        axes.set_title(title, fontsize=10)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_yticks(range(len(ARMS)), list(ARMS))
    panels[0].invert_yaxis()
    panels[0].legend(frameon=False, fontsize=8, loc="upper right")
    figure.supxlabel("difference from SFT, 95% intervals over clips", fontsize=9)
    figure.tight_layout()
    figure.savefig(path)
    pyplot.close(figure)


def _options() -> argparse.Namespace:
    parser = options_of(__doc__, "selection")
    parser.add_argument("--corpus-seed", type=int, default=13)
    parser.add_argument("--clips", type=json.loads, default={"train": 1200, "validation": 300, "raft": 2000, "test": 1500})
    parser.add_argument("--epochs", type=int, default=12, help="epochs of SFT")
    return parser.parse_args()


if __name__ == "__main__":
    main()
