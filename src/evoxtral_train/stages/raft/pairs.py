"""`evoxtral raft pairs`: the best and the worst candidate of each clip, for DPO in TRL's preference format."""

from array import array

from ...dataset.reader import PackedSplit
from ...errors import UsageError
from ...files import fingerprint_files
from ...modeling.bases import open_base_of
from ...raft.curation import best_and_worst
from ...records import Candidate, PreferencePair, ScoredCandidate
from ...runs import Options
from ..report import Report
from .rounds import RaftRound


def run(round_: RaftRound, options: Options) -> Report:
    """Writes `pairs/pairs.jsonl`. A clip gives no pair if its rewards differ by no more than `pairs.min_gap`."""
    # 1. What it reads, and the gaps between rewards.
    inputs = round_.require_scores()
    split = round_.require_split()
    config, clips, gaps = round_.config, 0, array("d")
    for clip in round_.scored_clips():
        clips += 1
        gap = _gap(*best_and_worst(clip))
        if gap > config.pairs.min_gap:
            gaps.append(gap)
    if not gaps:
        fix = "lower it, or raise generate.temperature"
        raise UsageError("no clip has two candidates whose rewards differ by that much", where="pairs.min_gap", fix=fix)
    # 2. The plan.
    job = round_.job("pairs", options)
    facts = {
        "clips": f"{clips} = {len(gaps)} pairs + {clips - len(gaps)} without",
        "mean gap of the rewards": f"{sum(gaps) / len(gaps):.4f}",
        "output": job.output,
    }
    if options.dry_run:
        job.check(inputs)
        return Report("plan: raft pairs", facts)
    open_base_of(split, config.model)  # raises if the dataset was packed for another base
    # 3. The pairs.
    with job.opened(inputs, [round_.scores, round_.candidates, config.dataset]) as work:
        ends = (best_and_worst(clip) for clip in round_.scored_clips())
        work.run.write_rows("pairs.jsonl", (_pair(*pair, split) for pair in ends if _gap(*pair) > config.pairs.min_gap))
        metrics = {"clips": clips, "pairs": len(gaps)}
        work.tracker.summary(metrics)
        work.done(metrics, fingerprint_files([work.path / "pairs.jsonl"]))
    # 4. The report.
    return Report("raft pairs", facts)


_Scored = tuple[Candidate, ScoredCandidate]


def _gap(best: _Scored, worst: _Scored) -> float:
    return best[1].reward - worst[1].reward


def _pair(best: _Scored, worst: _Scored, split: PackedSplit) -> PreferencePair:
    index = split.index_of[best[0].utterance_id]
    return PreferencePair(
        utterance_id=best[0].utterance_id,
        audio=str(split.audio_of(index)),
        prompt="",
        chosen=best[0].text,
        rejected=worst[0].text,
        prompt_ids=split.layout.prompt_ids(split.clip(index)),
        chosen_ids=_with_end(best[0], split),
        rejected_ids=_with_end(worst[0], split),
        chosen_reward=best[1].reward,
        rejected_reward=worst[1].reward,
    )


def _with_end(candidate: Candidate, split: PackedSplit) -> list[int]:
    return candidate.token_ids + [split.layout.eos_id] * (candidate.finish_reason == "eos")
