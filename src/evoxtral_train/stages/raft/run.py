"""`evoxtral raft run`: rounds of generate, score, curate and train, each from the adapter of the round before.

A gate measures the adapter on held-out clips before the first round and after each. The result is the adapter of the
best round; as many rounds in a row as `gate.patience` says without a gain over it are the end. All files stay.
"""

import shutil
import sys
import time
from functools import partial
from pathlib import Path
from statistics import fmean

from ... import processes
from ...config.evaluation import Decode, EvalConfig, System
from ...config.training import RaftConfig
from ...dataset.reader import PackedSplit, has_split
from ...errors import UsageError
from ...modeling.adapters import find_adapter
from ...modeling.bases import open_adapter, open_base_of
from ...progress import format_seconds
from ...raft.reward import Answer, score, weights_of
from ...reading import read_record
from ...records import Prediction, read_rows
from ...reporting.tables import markdown_table
from ...run_folders import discard, is_complete, remove
from ...runs import Options, Run, read_run, require_same_config
from ...tracking import Tracker
from .. import eval as evaluate
from ..plans import plan_curated, plan_steps
from ..report import Report
from . import curate, generate
from . import rounds as raft_folders
from . import score as score_stage
from . import train as raft_train

_STEPS = (
    ("generate", generate, raft_folders.candidates),
    ("score", score_stage, raft_folders.scores),
    ("curate", curate, raft_folders.curated),
    ("train", raft_train, raft_folders.trained),
)
_BY_RULE = (score_stage, curate)  # of several processes the first does these


def run(config: RaftConfig, options: Options) -> Report:
    """Writes `round-1/ …`, `gate/` and `result/` (an adapter, and a row per round in `metrics.json`). With `--resume` the
    finished steps are skipped, as long as they were asked the same; a finished run goes on when rounds were added."""
    if options.dry_run:
        return plan(config, options)
    processes.join(config.model.device)
    split = PackedSplit(config.dataset, config.split)
    _check(config)
    base = open_base_of(split, config.model)
    adapter = open_adapter(config.adapter, base, config.model)
    inputs = {"dataset": split.fingerprint, "base": base.fingerprint, "adapter": adapter.fingerprint}
    run = processes.first(lambda: _open(config, inputs, options))
    started = time.monotonic()
    with Tracker(config.tracking, "raft run", run.path, config) as tracker:
        rounds, kept, end = _rounds(config, options, tracker)
        best = find_adapter(raft_folders.trained(raft_folders.of_round(config, kept))) if kept else adapter
        metrics = {"rounds": rounds, "kept_round": kept, "ended": end, "seconds": time.monotonic() - started}
        tracker.summary({name: metrics[name] for name in ("kept_round", "seconds")})
    processes.first(lambda: _finish(run, best.folder, metrics))
    facts = {
        "rounds": f"{len(rounds) - 1}, {end}",
        "kept": f"the adapter of round {kept}" if kept else "the adapter that RAFT began with: no round helped",
        "time": format_seconds(metrics["seconds"]),
        "adapter": raft_folders.result(config) / "adapter",
    }
    return Report("raft run", facts, table=_table(rounds, config.gate.measure))


def plan(config: RaftConfig, options: Options) -> Report:
    if is_complete(config.dataset):
        _check(config)
    first = raft_folders.of_round(config, 1)
    facts = generate.plan(first, Options(resume=True)).facts
    steps = plan_steps(plan_curated(config.dataset, config.split, config.curate), config.train)
    facts |= {"then": "score, curate", "curated rows": steps["rows"], "training steps": steps["steps"]}
    for number in range(2, len(config.rounds) + 1):
        wanted = raft_folders.of_round(config, number).generate
        facts[f"round {number}"] = f"{wanted.candidates} candidates, temperature {wanted.temperature:g}, top-p {wanted.top_p:g}"
    gate = config.gate
    facts["gate"] = f"{gate.measure} on split {gate.split}, after each round" if gate.split else "none"
    return Report("plan: raft run", facts | {"output": config.output})


def _check(config: RaftConfig) -> None:
    if config.adapter.resolve().is_relative_to(config.output.resolve()):
        raise UsageError(
            f"the adapter to start from lies in the output {config.output}, which --overwrite would remove",
            where="adapter",
            fix="choose another `output`",
        )
    if config.gate.split and not has_split(config.dataset, config.gate.split):
        raise UsageError(
            f"the dataset has no split {config.gate.split!r}",
            where="gate.split",
            fix="name a split that was not trained on, or null for no gate",
        )


def _open(config: RaftConfig, inputs: dict[str, str], options: Options) -> Run:
    asked, path = config.model_dump(mode="json"), raft_folders.result(config)
    if options.resume and is_complete(path) and _adds_rounds(read_record(path / "config.yaml"), asked):
        options = Options(overwrite=True)  # of this folder alone: the rounds stay
        return Run.open(path, "raft run", asked, inputs, options)
    run = Run.open(path, "raft run", asked, inputs, options)
    if options.overwrite:
        _remove_rounds(config.output)
    return run


def _remove_rounds(output: Path) -> None:
    """An earlier call may have had more rounds. Only runs are removed, nothing else that lies there."""
    steps = ("candidates", "scores", "curated", "train", "pairs")
    for record in sorted(output.glob("round-*/*/run.json")):
        if record.parent.name.removesuffix(".partial") in steps:
            discard(record.parent)
    for folder in output.glob("round-*"):
        if folder.is_dir() and not any(each for each in folder.iterdir() if each.suffix != ".lock"):
            remove(folder)


def _adds_rounds(earlier: dict, asked: dict) -> bool:
    before, now = earlier.get("rounds", []), asked["rounds"]
    return len(before) < len(now) and now[: len(before)] == before and earlier | {"rounds": now} == asked


def _rounds(config: RaftConfig, options: Options, tracker: Tracker) -> tuple[list[dict], int, str]:
    """(a row per round, the start being round 0; the best round; why it ended)."""
    rounds, kept = [{"round": 0, "gate": _measure(config, 0, config.adapter)}], 0
    for number in range(1, len(config.rounds) + 1):
        one = raft_folders.of_round(config, number)
        _steps(one, number, len(config.rounds), options)
        measured = _measure(config, number, raft_folders.trained(one))
        rounds.append({"round": number, **_summary(one), "gate": measured})
        tracker.log({f"rounds/{name}": value for name, value in rounds[-1].items()}, step=number)
        if measured is None or measured - rounds[kept]["gate"] > config.gate.min_gain:
            kept = number
        elif number - kept == config.gate.patience:
            gain = measured - rounds[kept]["gate"]
            since = f"against round {kept}" if kept else "against the start"
            return rounds, kept, f"ended by the gate: {config.gate.measure} {gain:+.4f} {since}"
    return rounds, kept, "all done"


def _steps(config: RaftConfig, number: int, rounds: int, options: Options) -> None:
    for name, stage, folder in _STEPS:
        done = options.resume and processes.first(partial(is_complete, folder(config)))
        _say(f"round {number} of {rounds}: {name}{', finished before' if done else ''}")
        if done:
            asked = raft_folders.asked(config, name)
            processes.first(partial(require_same_config, folder(config), asked, asked))
            continue
        work = partial(stage.run, config, options)
        report = processes.first(work) if stage in _BY_RULE else work()
        if stage in _BY_RULE:  # what there is to win, before anything is trained
            for fact, value in report.facts.items():
                _say(f"  {fact}: {value}")


def _say(line: str) -> None:
    if processes.is_first():
        print(line, file=sys.stderr, flush=True)


def _measure(config: RaftConfig, number: int, adapter: Path) -> float | None:
    """What the gate measures of an adapter: the mean reward of its greedy completions, or their micro F1."""
    gate = config.gate
    if not gate.split:
        return None
    name, folder, wanted = f"round {number}", raft_folders.gate(config, number), config.generate
    evaluation = EvalConfig(
        output=folder, dataset=config.dataset, split=gate.split, model=config.model, audio_cache=config.audio_cache,
        systems=[System(name=name, adapter=adapter)], placement=config.score.placement, tracking=config.tracking,
        decode=Decode(max_new_tokens=wanted.max_new_tokens, batch_tokens=wanted.batch_tokens, compile=wanted.compile),
    )  # fmt: skip
    if not processes.first(lambda: _is_measured(evaluation, find_adapter(adapter).fingerprint)):
        evaluate.run(evaluation, Options(overwrite=True))
    return processes.first(lambda: _read_measure(config, folder, name))


def _is_measured(evaluation: EvalConfig, adapter: str) -> bool:
    """Whether an earlier call evaluated this very adapter in the same way."""
    folder, asked = evaluation.output, evaluation.model_dump(mode="json")
    if not is_complete(folder):
        return False
    earlier = read_record(folder / "config.yaml")
    same = all(earlier[name] == asked[name] for name in ("dataset", "split", "model", "decode", "placement"))
    return same and adapter in read_run(folder)["inputs"].values()


def _read_measure(config: RaftConfig, folder: Path, name: str) -> float:
    if config.gate.measure == "micro_f1":
        report = read_record(folder / "metrics.json")["systems"][name]
        return report["micro"]["f1"]["value"] or 0.0
    target = PackedSplit(config.dataset, config.gate.split).target
    weights = weights_of(config.score.profile, target, config.score.weights.model_dump(exclude_none=True))
    rows = read_rows(folder / f"predictions/{name}.jsonl", Prediction)
    placement = config.score.placement
    answers = (Answer(row.reference, row.prediction, target != "tags", row.events, row.written, placement) for row in rows)
    return fmean(score(weights, answer)[0] for answer in answers)


def _summary(config: RaftConfig) -> dict:
    """What a round made of its candidates, from the metrics of its steps."""
    scores, curated, trained = (
        read_record(folder(config) / "metrics.json")
        for folder in (raft_folders.scores, raft_folders.curated, raft_folders.trained)
    )
    wanted = config.generate
    return {
        "candidates_per_clip": wanted.candidates,
        "temperature": wanted.temperature,
        "top_p": wanted.top_p,
        "greedy_reward": scores.get("mean_greedy_reward"),
        "mean_reward": scores["mean_reward"],
        "best_reward": scores["mean_best_reward"],
        "clips_without_spread_share": scores["clips_without_spread_share"],
        "curated": curated["curated"],
        "replayed": curated["replayed"],
        "steps": trained["steps"],
    }


def _table(rounds: list[dict], measure: str) -> str:
    header = ["round", "N", "greedy", "mean of N", "best of N", "no spread", "curated", "replayed", "steps", f"gate: {measure}"]
    names = ["round", "candidates_per_clip", "greedy_reward", "mean_reward", "best_reward", "clips_without_spread_share",
             "curated", "replayed", "steps", "gate"]  # fmt: skip
    return markdown_table(header, [[_cell(row.get(name)) for name in names] for row in rounds])


def _cell(value: float | None) -> str:
    return "—" if value is None else f"{value:.4f}" if isinstance(value, float) else str(value)


def _finish(run: Run, adapter: Path, metrics: dict) -> None:
    shutil.copytree(adapter, run.path / "adapter", dirs_exist_ok=True)
    run.finish(metrics, find_adapter(run.path / "adapter").fingerprint)
