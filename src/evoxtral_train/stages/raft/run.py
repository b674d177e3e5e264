"""`evoxtral raft run`: rounds of generate, score, curate and train, each from the adapter of the previous round.

A gate measures the adapter on held-out clips before the first round and after each. The result is the adapter of the
best round. The run ends after `gate.patience` rounds in a row without a gain over the best. With `gate.wer_regression_max`, a
round that loses more words than that is no gain. All files stay.
"""

import shutil
import sys
from functools import partial
from pathlib import Path
from statistics import fmean

from ... import processes
from ...config.evaluation import Decode, EvalConfig, System
from ...config.training import Gate, RaftConfig
from ...dataset.reader import PackedSplit, has_split
from ...errors import UsageError
from ...jobs import Job, Work
from ...modeling.adapters import FOLDERS, Adapter, find_adapter
from ...modeling.bases import Inputs
from ...progress import format_seconds
from ...raft import reward
from ...reading import read_record
from ...records import Prediction, read_rows
from ...reporting.tables import markdown_table
from ...reporting.training import trained_at
from ...run_folders import discard, is_complete, remove
from ...runs import Options, read_run, require_same_config, require_same_inputs
from ...scoring.gates import within
from ...tracking import Tracker
from ...training.trainer import check_launch
from ...training.validation import check_words
from .. import eval as evaluate
from ..plans import plan_curated, plan_machine, plan_steps
from ..report import Report
from . import curate, generate, score, train
from .rounds import RaftRound
from .scoring import Scoring

_STEPS = {"generate": generate, "score": score, "curate": curate, "train": train}
_BY_RULE = ("score", "curate")  # only the first process runs these


def run(config: RaftConfig, options: Options) -> Report:
    """Writes `round-1/ …`, `gate/` and `result/` (an adapter, and one row per round in `metrics.json`). With `--resume`, finished
    steps are skipped if their settings are still the same; a finished run continues if rounds were added."""
    if options.dry_run:
        return plan(config, options)
    # 1. What it reads.
    processes.join(config.model.device)
    check_launch(config.train, config.model.device)
    split = PackedSplit(config.dataset, config.split)
    _check(config)
    generate.most_new_tokens(config.generate, split)
    inputs = Inputs.open(config, split)
    scored_by = processes.first(lambda: Scoring.of(config, split).fingerprints)
    fingerprints = inputs.fingerprints | scored_by
    with _job(config, options, fingerprints).shared(fingerprints, [config.score.verifier]) as work:
        if options.overwrite:
            processes.first(lambda: _remove_rounds(config.output))
        # 2. The rounds, and the adapter of the best round.
        rounds, kept, end = _rounds(config, options, work.tracker)
        best = find_adapter(RaftRound.of(config, kept).folder("train")) if kept else inputs.adapter
        metrics = {"rounds": rounds, "kept_round": kept, "ended": end, "seconds": work.seconds()}
        work.tracker.summary({name: metrics[name] for name in ("kept_round", "seconds")})
        processes.first(lambda: _copy_adapter(best, work, metrics))
    # 3. The report.
    facts = {
        "rounds": f"{len(rounds) - 1}, {end}",
        "kept": f"the adapter of round {kept}" if kept else "the adapter from before RAFT: no round helped",
        "time": format_seconds(metrics["seconds"]),
        **trained_at(_result(config), config.train),
    }
    return Report("raft run", facts, table=_table(rounds, config.gate.measure))


def plan(config: RaftConfig, options: Options) -> Report:
    if is_complete(config.dataset):
        _check(config)
    facts = generate.plan(RaftRound.of(config, 1), Options(resume=True)).facts
    steps = plan_steps(plan_curated(config), config.train)
    facts |= {"then": "score, curate", "curated rows": steps["rows"], "training steps": steps["steps"]}
    facts |= plan_machine(lambda: check_launch(config.train, config.model.device))
    for number in range(2, len(config.rounds) + 1):
        sampling = RaftRound.of(config, number).config.generate
        facts[f"round {number}"] = (
            f"{sampling.candidates} candidates, temperature {sampling.temperature:g}, top-p {sampling.top_p:g}"
        )
    gate = config.gate
    limit = "" if gate.wer_regression_max is None else f", WER at most {gate.wer_regression_max:g} above the start's"
    facts["gate"] = f"{gate.measure} on split {gate.split}, after each round{limit}" if gate.split else "none"
    return Report("plan: raft run", facts | {"output": config.output})


def _result(config: RaftConfig) -> Path:
    return config.output / "result"


def _check(config: RaftConfig) -> None:
    if config.adapter.resolve().is_relative_to(config.output.resolve()):
        raise UsageError(
            f"the starting adapter is inside the output {config.output}, which --overwrite would remove",
            where="adapter",
            fix="choose another `output`",
        )
    if config.gate.split and not has_split(config.dataset, config.gate.split):
        raise UsageError(
            f"the dataset has no split {config.gate.split!r}",
            where="gate.split",
            fix="name a split that was not trained on, or null for no gate",
        )
    if config.gate.split:
        split = PackedSplit(config.dataset, config.gate.split)
        split.describe_labelled()  # raises if it has no reference to measure by
        if config.gate.wer_regression_max is not None:
            check_words(split, split.labelled_examples(), "gate.wer_regression_max")


def _job(config: RaftConfig, options: Options, inputs: dict[str, str]) -> Job:
    """If rounds were added to a finished run, only its `result` is replaced: the rounds stay, so the inputs must be the same."""
    settings, path = config.model_dump(mode="json"), _result(config)
    if options.resume and is_complete(path) and _adds_rounds(read_record(path / "config.yaml"), settings):
        processes.first(lambda: require_same_inputs(path, inputs))
        options = Options(overwrite=True)
    return Job("raft run", path, settings, config, options)


def _remove_rounds(output: Path) -> None:
    """An earlier call may have had more rounds. Only runs are removed, no other files."""
    steps = ("candidates", "scores", "curated", "train", "pairs")
    for record in sorted(output.glob("round-*/*/run.json")):
        if record.parent.name.removesuffix(".partial") in steps:
            discard(record.parent)
    for folder in output.glob("round-*"):
        if folder.is_dir() and not any(path for path in folder.iterdir() if path.suffix != ".lock"):
            remove(folder)


def _adds_rounds(earlier: dict, settings: dict) -> bool:
    before, now = earlier.get("rounds", []), settings["rounds"]
    return len(before) < len(now) and now[: len(before)] == before and earlier | {"rounds": now} == settings


def _rounds(config: RaftConfig, options: Options, tracker: Tracker) -> tuple[list[dict], int, str]:
    """(one row per round, with the start as round 0; the best round; the reason why the run ended)."""
    rounds, kept = [{"round": 0, **_measure(config, 0, config.adapter)}], 0
    for number in range(1, len(config.rounds) + 1):
        round_ = RaftRound.of(config, number)
        _run_steps(round_, f"round {number} of {len(config.rounds)}", options)
        measured = _measure(config, number, round_.folder("train"))
        rounds.append({"round": number, **_summary(round_), **measured})
        tracker.log({f"rounds/{name}": value for name, value in rounds[-1].items()}, step=number)
        if _helps(config.gate, rounds[0], rounds[kept], measured):
            kept = number
        elif number - kept == config.gate.patience:
            gain = measured["gate"] - rounds[kept]["gate"]
            reason = f"{config.gate.measure} {gain:+.4f} {f'against round {kept}' if kept else 'against the start'}"
            if not _keeps_words(config.gate, rounds[0], measured):
                reason += f", WER {measured['gate_wer'] - rounds[0]['gate_wer']:+.4f} against the start"
            return rounds, kept, f"ended by the gate: {reason}"
    return rounds, kept, "all done"


def _helps(gate: Gate, start: dict, best: dict, round_: dict) -> bool:
    """Whether a round becomes the best one, by what `_measure` found for each."""
    if round_["gate"] is None:
        return True
    return round_["gate"] - best["gate"] > gate.min_gain and _keeps_words(gate, start, round_)


def _keeps_words(gate: Gate, start: dict, round_: dict) -> bool:
    return gate.wer_regression_max is None or within(round_["gate_wer"] - start["gate_wer"], gate.wer_regression_max)


def _run_steps(round_: RaftRound, title: str, options: Options) -> None:
    for step, stage in _STEPS.items():
        folder = round_.folder(step)
        finished = options.resume and processes.first(partial(is_complete, folder))
        _print(f"{title}: {step}{', finished before' if finished else ''}")
        if finished:
            settings = round_.settings(step)
            processes.first(partial(require_same_config, folder, settings, settings))
            continue
        work = partial(stage.run, round_, options)
        report = processes.first(work) if step in _BY_RULE else work()
        if step in _BY_RULE:  # shows how much reward is left to gain before training
            for fact, value in report.facts.items():
                _print(f"  {fact}: {value}")


def _print(line: str) -> None:
    if processes.is_first():
        print(line, file=sys.stderr, flush=True)


def _measure(config: RaftConfig, number: int, adapter: Path) -> dict[str, float | None]:
    """"gate": the gate's measure of an adapter, the mean reward of its greedy completions or their micro F1; None without a gate.
    "gate_wer": their WER, if they have words."""
    gate = config.gate
    if not gate.split:
        return {"gate": None}
    name, folder, sampling = f"round {number}", config.output / "gate" / f"round-{number}", config.generate
    new_tokens = sampling.max_new_tokens or generate.most_new_tokens(sampling, PackedSplit(config.dataset, gate.split))
    evaluation = EvalConfig(
        output=folder, dataset=config.dataset, split=gate.split, model=config.model, audio_cache=config.audio_cache,
        audio_cache_limit_gb=config.audio_cache_limit_gb,
        systems=[System(name=name, adapter=adapter)], placement=config.score.placement, tracking=config.tracking,
        decode=Decode(max_new_tokens=new_tokens, batch_tokens=sampling.batch_tokens, compile=sampling.compile),
    )  # fmt: skip
    if not processes.first(lambda: _is_measured(evaluation, find_adapter(adapter).fingerprint)):
        evaluate.run(evaluation, Options(overwrite=True))
    return processes.first(lambda: _read_measure(config, folder, name))


def _is_measured(evaluation: EvalConfig, adapter: str) -> bool:
    """Whether an earlier call evaluated the same adapter with the same settings."""
    folder, settings = evaluation.output, evaluation.model_dump(mode="json")
    if not is_complete(folder):
        return False
    earlier = read_record(folder / "config.yaml")
    same = all(earlier[name] == settings[name] for name in ("dataset", "split", "model", "decode", "placement"))
    return same and adapter in read_run(folder)["inputs"].values()


def _read_measure(config: RaftConfig, folder: Path, name: str) -> dict[str, float | None]:
    report = read_record(folder / "metrics.json")["systems"][name]
    words = {"gate_wer": report["wer"]["micro"]["value"]} if "wer" in report else {}
    if config.gate.measure == "micro_f1":
        return {"gate": report["micro"]["f1"]["value"] or 0.0} | words
    target = PackedSplit(config.dataset, config.gate.split).target
    weights = reward.weights_of(config.score.profile, target, config.score.weights.model_dump(exclude_none=True))
    rows = read_rows(folder / f"predictions/{name}.jsonl", Prediction)
    placement = config.score.placement
    answers = (reward.Answer(row.reference, row.prediction, target != "tags", row.events, row.written, placement) for row in rows)
    return {"gate": fmean(reward.score(weights, answer)[0] for answer in answers)} | words


def _summary(round_: RaftRound) -> dict:
    """A row of the table of rounds, from the metrics of the round's steps."""
    scores, curated, trained = (read_record(round_.folder(step) / "metrics.json") for step in ("score", "curate", "train"))
    sampling, profiles = round_.config.generate, scores["profiles"]
    rewards = scores if len(profiles) == 1 else {}  # a mean over several profiles would compare what cannot be compared
    return {
        "candidates_per_clip": sampling.candidates,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "greedy_reward": rewards.get("mean_greedy_reward"),
        "mean_reward": rewards.get("mean_reward"),
        "best_reward": rewards.get("mean_best_reward"),
        "profiles": profiles,
        "clips_without_spread_share": scores["clips_without_spread_share"],
        "curated": curated["curated"],
        "replayed": curated["replayed"],
        "steps": trained["steps"],
    }


def _table(rounds: list[dict], measure: str) -> str:
    header = ["round", "N", "greedy", "mean of N", "best of N", "no spread", "curated", "replayed", "steps", f"gate: {measure}"]
    names = ["round", "candidates_per_clip", "greedy_reward", "mean_reward", "best_reward", "clips_without_spread_share",
             "curated", "replayed", "steps", "gate"]  # fmt: skip
    if any("gate_wer" in row for row in rounds):
        header, names = [*header, "gate: WER"], [*names, "gate_wer"]
    return markdown_table(header, [[_cell(row.get(name)) for name in names] for row in rounds])


def _cell(value: float | None) -> str:
    return "—" if value is None else f"{value:.4f}" if isinstance(value, float) else str(value)


def _copy_adapter(adapter: Adapter, work: Work, metrics: dict) -> None:
    target = work.path / FOLDERS[adapter.method]
    shutil.copytree(adapter.folder, target, dirs_exist_ok=True)
    work.done(metrics, find_adapter(target).fingerprint)
