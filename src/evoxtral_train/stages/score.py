"""`evoxtral raft score`: a reward, with every component, for each candidate. Needs no torch."""

from statistics import fmean

from ..config.schema import Placement, RaftConfig
from ..data.packed import PackedSplit
from ..errors import EvoxtralError, UsageError
from ..files import fingerprint_files
from ..records import Candidate, ScoredCandidate, read_rows
from ..runs import Options, Run, check_output, require_complete, require_same_config, require_same_input
from ..scoring.reward import Answer, formula, score, weights_of
from ..tracking import Tracker
from . import raft_folders
from .report import Report

_TABLE_ROWS = 2000


def run(config: RaftConfig, options: Options) -> Report:
    """Writes `scores/scores.jsonl`. The reference is the clip's whole tagged transcript."""
    source = raft_folders.candidates(config)
    fingerprint = require_complete(source, "raft generate", "evoxtral raft generate configs/raft.yaml")
    split = PackedSplit(config.dataset, config.split)
    require_same_input(source, "dataset", split.fingerprint, str(config.dataset))
    require_same_config(source, raft_folders.asked(config, "generate"), ("split", "generate", "adapter"))
    weights = weights_of(config.score.profile, split.target, config.score.weights.model_dump(exclude_none=True))
    facts = {"profile": f"{config.score.profile}: {formula(weights)}", "output": raft_folders.scores(config)}
    asked, inputs = raft_folders.asked(config, "score"), {"dataset": split.fingerprint, "candidates": fingerprint}
    candidates = read_rows(source / "candidates.jsonl", Candidate)
    if not candidates:
        raise UsageError("there is no candidate to score", where=str(source), fix="generate again with --overwrite")
    if options.dry_run:
        check_output(raft_folders.scores(config), "raft score", asked, inputs, options)
        return Report("plan: raft score", {"candidates": len(candidates), **facts})
    run = Run.open(raft_folders.scores(config), "raft score", asked, inputs, options, [source, config.dataset])
    with Tracker(config.tracking, "raft score", run.path, config) as tracker:
        scored = [_score(each, split, weights, config.score.placement) for each in candidates]
        run.write_rows("scores.jsonl", scored)
        metrics = _summary(scored)
        if (source / "greedy.jsonl").is_file():
            greedy = [
                _score(each, split, weights, config.score.placement) for each in read_rows(source / "greedy.jsonl", Candidate)
            ]
            metrics["mean_greedy_reward"] = fmean(each.reward for each in greedy)
        tracker.summary(metrics)
        names = list(scored[0].components)
        tracker.media_table(
            "raft/candidates",
            ["utterance_id", "candidate_id", "reference", "text", "reward", *names],
            [
                [each.utterance_id, each.candidate_id, split.examples[split.index_of[each.utterance_id]].text,
                 candidate.text, each.reward, *(each.components[name] for name in names)]
                for each, candidate in list(zip(scored, candidates, strict=True))[:_TABLE_ROWS]
            ],
        )  # fmt: skip
    run.finish(metrics, fingerprint_files([run.path / "scores.jsonl"]))
    facts |= {
        "candidates": metrics["candidates"],
        "reward, greedy": f"{metrics['mean_greedy_reward']:.4f}" if "mean_greedy_reward" in metrics else "not decoded",
        "reward, mean of N": f"{metrics['mean_reward']:.4f}",
        "reward, best of N": f"{metrics['mean_best_reward']:.4f} (the most that training on them can win)",
        "clips without spread": f"{metrics['clips_without_spread_share']:.0%} (nothing to choose between)",
    }
    return Report("raft score", facts)


def _score(candidate: Candidate, split: PackedSplit, weights: dict[str, float], placement: Placement) -> ScoredCandidate:
    index = split.index_of.get(candidate.utterance_id)
    if index is None:
        raise EvoxtralError(f"candidate of an unknown clip {candidate.utterance_id!r}", fix="generate again")
    example = split.examples[index]
    answer = Answer(example.text, candidate.text, split.target != "tags", example.timed_events, candidate.written, placement)
    reward, components = score(weights, answer)
    return ScoredCandidate(candidate.utterance_id, candidate.candidate_id, reward, components)


def _summary(scored: list[ScoredCandidate]) -> dict:
    clips: dict[str, list[float]] = {}
    for each in scored:
        clips.setdefault(each.utterance_id, []).append(each.reward)
    return {
        "clips": len(clips),
        "candidates": len(scored),
        "mean_reward": fmean(each.reward for each in scored),
        "mean_best_reward": fmean(max(rewards) for rewards in clips.values()),
        "clips_without_spread_share": fmean(max(rewards) == min(rewards) for rewards in clips.values()),
        "components": {name: fmean(each.components[name] for each in scored) for name in scored[0].components},
    }
