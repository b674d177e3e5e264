"""`evoxtral raft score`: a reward, with every component, for each candidate. Needs no torch."""

from array import array
from collections import defaultdict
from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import Path
from statistics import fmean

from ...dataset.reader import Example, PackedSplit
from ...errors import EvoxtralError, UsageError
from ...files import fingerprint_files
from ...raft import verifier
from ...records import Candidate, ScoredCandidate, iter_rows
from ...runs import Options, require_same_config
from ..report import Report
from .rounds import RaftRound
from .scoring import Scoring, plan_scoring

_TABLE_ROWS = 2000


def run(round_: RaftRound, options: Options) -> Report:
    """Writes `scores/scores.jsonl`. The reference is the clip's full tagged transcript; the verifier reads none."""
    # 1. What it reads.
    inputs = round_.require_candidates()
    split = round_.require_split()
    require_same_config(round_.candidates, round_.settings("generate"), ("split", "generate", "adapter"))
    path, greedy_path = round_.candidates / "candidates.jsonl", round_.candidates / "greedy.jsonl"
    count = sum(1 for _ in iter_rows(path, Candidate))
    if not count:
        raise UsageError("there is no candidate to score", where=str(round_.candidates), fix="generate again with --overwrite")
    # 2. The plan.
    config, job = round_.config, round_.job("score", options)
    if options.dry_run:
        facts, fingerprints = plan_scoring(config, split)
        job.check({"dataset": split.fingerprint, **inputs, **fingerprints})
        return Report("plan: raft score", {"candidates": count, **facts, "output": job.output})
    scoring = Scoring.of(config, split)
    inputs = {"dataset": split.fingerprint, **inputs, **scoring.fingerprints}
    # 3. The scores, clip by clip.
    with job.opened(inputs, [round_.candidates, config.dataset, config.score.verifier]) as work:
        whole, by_profile, table = _Tally(), defaultdict(_Tally), []

        def scores() -> Iterator[ScoredCandidate]:
            for example, candidates, greedy in _clips(path, greedy_path if greedy_path.is_file() else None, split):
                texts = [candidate.text for candidate in candidates]
                for place, candidate in enumerate(candidates):
                    row = scoring.score(candidate, example, texts[:place] + texts[place + 1 :])
                    for tally in (whole, by_profile[row.profile]):
                        tally.add(row)
                    if len(table) < _TABLE_ROWS:
                        table.append((row, candidate.text, None if row.profile == verifier.PROFILE else example.text))
                    yield row
                if greedy is not None:
                    row = scoring.score(greedy, example, texts)
                    for tally in (whole, by_profile[row.profile]):
                        tally.add_greedy(row)

        work.run.write_rows("scores.jsonl", scores())
        metrics = whole.metrics() | {"profiles": {profile: tally.metrics() for profile, tally in by_profile.items()}}
        work.tracker.summary(metrics)
        names = list(metrics["components"])
        columns = ["utterance_id", "candidate_id", "profile", "reference", "text", "reward", *names]
        work.tracker.media_table("raft/candidates", columns, [_cells(*row, names) for row in table])
        work.done(metrics, fingerprint_files([work.path / "scores.jsonl"]))
    # 4. The report.
    facts = scoring.facts() | {"output": job.output, "candidates": metrics["candidates"]}
    several = len(by_profile) > 1
    for profile, measured in metrics["profiles"].items():
        facts |= {f"{name}{f' ({profile})' if several else ''}": value for name, value in _facts(measured).items()}
    return Report("raft score", facts)


def _facts(measured: dict) -> dict:
    return {
        "reward, greedy": f"{measured['mean_greedy_reward']:.4f}" if "mean_greedy_reward" in measured else "not decoded",
        "reward, mean of N": f"{measured['mean_reward']:.4f}",
        "reward, best of N": f"{measured['mean_best_reward']:.4f} (the most that training on them can gain)",
        "clips without spread": f"{measured['clips_without_spread_share']:.0%} (nothing to choose between)",
    }


def _cells(row: ScoredCandidate, text: str, reference: str | None, names: Iterable[str]) -> list:
    components = [row.components.get(name) for name in names]
    return [row.utterance_id, row.candidate_id, row.profile, reference, text, row.reward, *components]


def _clips(
    path: Path, greedy_path: Path | None, split: PackedSplit
) -> Iterator[tuple[Example, list[Candidate], Candidate | None]]:
    """Each clip with its candidates and, if decoded, its greedy completion; both files are read as streams."""
    greedy = None if greedy_path is None else _with_clips(greedy_path, split)
    for _, rows in groupby(_with_clips(path, split), key=lambda row: row[1].id):
        rows = list(rows)
        first = None if greedy is None else next(greedy, (None, None))[0]
        if greedy is not None and (first is None or first.utterance_id != rows[0][1].id):
            what = f"clip {rows[0][1].id!r} has candidates, but no greedy completion in its place"
            raise EvoxtralError(what, where=str(greedy_path), fix="generate again with --overwrite")
        yield rows[0][1], [candidate for candidate, _ in rows], first


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


class _Tally:
    """Collects the metrics: a few numbers for each candidate. Rows must come clip by clip."""

    def __init__(self):
        self._rewards, self._components = array("d"), defaultdict(lambda: array("d"))
        self._best, self._worst, self._clip = array("d"), array("d"), None  # one value for each clip
        self._greedy = array("d")

    def add(self, row: ScoredCandidate) -> None:
        self._rewards.append(row.reward)
        for name, value in row.components.items():
            self._components[name].append(value)
        if row.utterance_id != self._clip:
            self._clip = row.utterance_id
            self._best.append(row.reward)
            self._worst.append(row.reward)
        self._best[-1], self._worst[-1] = max(self._best[-1], row.reward), min(self._worst[-1], row.reward)

    def add_greedy(self, row: ScoredCandidate) -> None:
        self._greedy.append(row.reward)

    def metrics(self) -> dict:
        greedy = {"mean_greedy_reward": fmean(self._greedy)} if self._greedy else {}
        return greedy | {
            "clips": len(self._best),
            "candidates": len(self._rewards),
            "mean_reward": fmean(self._rewards),
            "mean_best_reward": fmean(self._best),
            "clips_without_spread_share": fmean(best == worst for best, worst in zip(self._best, self._worst, strict=True)),
            "components": {name: fmean(values) for name, values in self._components.items()},
        }
