"""`evoxtral raft score`: a reward, with every component, for each candidate. Needs no torch."""

from array import array
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean

from ...config.training import Score
from ...dataset.reader import Example, PackedSplit
from ...errors import EvoxtralError, UsageError
from ...files import fingerprint_files
from ...raft.reward import Answer, formula, score, weights_of
from ...records import Candidate, ScoredCandidate, iter_rows
from ...runs import Options, require_same_config
from ..report import Report
from .rounds import RaftRound

_TABLE_ROWS = 2000


def run(round_: RaftRound, options: Options) -> Report:
    """Writes `scores/scores.jsonl`. The reference is the clip's full tagged transcript."""
    # 1. What it reads.
    inputs = round_.require_candidates()
    split = round_.require_split()
    require_scorable(split)
    require_same_config(round_.candidates, round_.settings("generate"), ("split", "generate", "adapter"))
    path, greedy_path = round_.candidates / "candidates.jsonl", round_.candidates / "greedy.jsonl"
    count = sum(1 for _ in iter_rows(path, Candidate))
    if not count:
        raise UsageError("there is no candidate to score", where=str(round_.candidates), fix="generate again with --overwrite")
    # 2. The plan.
    config, job = round_.config, round_.job("score", options)
    weights = weights_of(config.score.profile, split.target, config.score.weights.model_dump(exclude_none=True))
    inputs = {"dataset": split.fingerprint, **inputs}
    facts = {"profile": f"{config.score.profile}: {formula(weights)}", "output": job.output}
    if options.dry_run:
        job.check(inputs)
        return Report("plan: raft score", {"candidates": count, **facts})
    # 3. The scores, one candidate at a time.
    with job.opened(inputs, [round_.candidates, config.dataset]) as work:
        tally, table = _Tally(), []

        def scores() -> Iterator[ScoredCandidate]:
            for candidate, example in _with_clips(path, split):
                row = _score(candidate, example, split, weights, config.score)
                tally.add(row)
                if len(table) < _TABLE_ROWS:
                    components = row.components.values()
                    table.append([row.utterance_id, row.candidate_id, example.text, candidate.text, row.reward, *components])
                yield row

        work.run.write_rows("scores.jsonl", scores())
        metrics = tally.metrics()
        if greedy_path.is_file():
            metrics["mean_greedy_reward"] = fmean(
                _score(candidate, example, split, weights, config.score).reward
                for candidate, example in _with_clips(greedy_path, split)
            )
        work.tracker.summary(metrics)
        columns = ["utterance_id", "candidate_id", "reference", "text", "reward", *metrics["components"]]
        work.tracker.media_table("raft/candidates", columns, table)
        work.done(metrics, fingerprint_files([work.path / "scores.jsonl"]))
    # 4. The report.
    facts |= {
        "candidates": metrics["candidates"],
        "reward, greedy": f"{metrics['mean_greedy_reward']:.4f}" if "mean_greedy_reward" in metrics else "not decoded",
        "reward, mean of N": f"{metrics['mean_reward']:.4f}",
        "reward, best of N": f"{metrics['mean_best_reward']:.4f} (the most that training on them can gain)",
        "clips without spread": f"{metrics['clips_without_spread_share']:.0%} (nothing to choose between)",
    }
    return Report("raft score", facts)


def require_scorable(split: PackedSplit) -> None:
    """Raises UsageError if a clip has nothing to be scored by."""
    if not split.labelled.all():
        what = f"{(~split.labelled).sum():,} of the {len(split):,} clips of split {split.split} have no text to compare with"
        fix = "name a run of `evoxtral probe`, or a file of tag probabilities"
        raise UsageError(f"{what}, and there is no verifier", where="score.verifier", fix=fix)


def _with_clips(path: Path, split: PackedSplit) -> Iterator[tuple[Candidate, Example]]:
    """Each candidate of a file with its clip; both are in the order of the split and are read as streams. Raises EvoxtralError
    for a candidate that is out of order, or whose clip is not in the split."""
    examples, before, example = iter(split.examples), None, None
    for candidate in iter_rows(path, Candidate):
        while example is None or example.id != candidate.utterance_id:
            example, before = next(examples, None), None
            if example is None:
                what = f"clip {candidate.utterance_id!r} is not in split {split.split}, or the clips are not in its order"
                raise EvoxtralError(what, where=str(path), fix="generate again with --overwrite")
        if before is not None and candidate.candidate_id <= before:
            what = f"the candidates of clip {candidate.utterance_id!r} are not sorted by candidate_id, or one appears twice"
            raise EvoxtralError(what, where=str(path), fix="generate again with --overwrite")
        before = candidate.candidate_id
        yield candidate, example


def _score(
    candidate: Candidate, example: Example, split: PackedSplit, weights: dict[str, float], rule: Score
) -> ScoredCandidate:
    answer = Answer(example.text, candidate.text, split.target != "tags", example.timed_events, candidate.written, rule.placement)
    reward, components = score(weights, answer)
    return ScoredCandidate(candidate.utterance_id, candidate.candidate_id, reward, components, rule.profile)


class _Tally:
    """Collects the metrics: a few numbers for each candidate. Rows must come clip by clip."""

    def __init__(self):
        self._rewards, self._components = array("d"), defaultdict(lambda: array("d"))
        self._best, self._worst, self._clip = array("d"), array("d"), None  # one value for each clip

    def add(self, row: ScoredCandidate) -> None:
        self._rewards.append(row.reward)
        for name, value in row.components.items():
            self._components[name].append(value)
        if row.utterance_id != self._clip:
            self._clip = row.utterance_id
            self._best.append(row.reward)
            self._worst.append(row.reward)
        self._best[-1], self._worst[-1] = max(self._best[-1], row.reward), min(self._worst[-1], row.reward)

    def metrics(self) -> dict:
        return {
            "clips": len(self._best),
            "candidates": len(self._rewards),
            "mean_reward": fmean(self._rewards),
            "mean_best_reward": fmean(self._best),
            "clips_without_spread_share": fmean(best == worst for best, worst in zip(self._best, self._worst, strict=True)),
            "components": {name: fmean(values) for name, values in self._components.items()},
        }
