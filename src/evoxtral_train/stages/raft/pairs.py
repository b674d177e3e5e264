"""`evoxtral raft pairs`: the best and the worst candidate of each clip, for DPO in TRL's preference format."""

from statistics import fmean

from ...dataset.reader import PackedSplit
from ...errors import UsageError
from ...files import fingerprint_files
from ...modeling.bases import open_base_of
from ...raft.curation import ScoredClip, best_and_worst
from ...raft.preferences import Preferences
from ...records import Candidate, PreferencePair
from ...runs import Options
from ..report import Report
from .rounds import RaftRound


def run(round_: RaftRound, options: Options) -> Report:
    """Writes `pairs/pairs.jsonl`. A clip whose candidates all have one reward gives no pair."""
    # 1. What it reads, and the clips that give a pair.
    inputs = round_.require_scores()
    split = round_.require_split()
    config, chosen = round_.config, Preferences.of(round_.scored_clips(), round_.config.pairs)
    if not chosen.clips:
        what, fix = "no clip has two candidates with different rewards", "raise generate.temperature, and generate again"
        raise UsageError(what, where=str(round_.scores), fix=fix)
    # 2. The plan.
    job = round_.job("pairs", options)
    pairs, clips = len(chosen.clips), len(chosen.clips) + chosen.dropped + chosen.flat
    facts = {"clips": f"{clips} = {pairs} pairs + {chosen.dropped} dropped + {chosen.flat} without a difference"}
    for profile, gaps in chosen.gaps.items():
        facts[f"difference in reward, {profile}"] = f"mean {fmean(gaps):.4f}, smallest {gaps[-1]:.4f}"
    facts["output"] = job.output
    if options.dry_run:
        job.check(inputs)
        return Report("plan: raft pairs", facts)
    open_base_of(split, config.model)  # raises if the dataset was packed for another base
    # 3. The pairs.
    with job.opened(inputs, [round_.scores, round_.candidates, config.dataset]) as work:
        scored = (clip for clip in round_.scored_clips() if clip[0][0].utterance_id in chosen.clips)
        work.run.write_rows("pairs.jsonl", (_pair(clip, split) for clip in scored))
        metrics = {"clips": clips, "pairs": pairs, "profiles": {profile: len(gaps) for profile, gaps in chosen.gaps.items()}}
        work.tracker.summary(metrics)
        work.done(metrics, fingerprint_files([work.path / "pairs.jsonl"]))
    # 4. The report.
    return Report("raft pairs", facts)


def _pair(clip: ScoredClip, split: PackedSplit) -> PreferencePair:
    (chosen, best), (rejected, worst) = best_and_worst(clip)
    index = split.index_of[chosen.utterance_id]
    return PreferencePair(
        utterance_id=chosen.utterance_id,
        audio=str(split.audio_of(index)),
        prompt="",
        chosen=chosen.text,
        rejected=rejected.text,
        prompt_ids=split.layout.prompt_ids(split.clip(index)),
        chosen_ids=_with_end(chosen, split),
        rejected_ids=_with_end(rejected, split),
        chosen_reward=best.reward,
        rejected_reward=worst.reward,
        profile=best.profile,
    )


def _with_end(candidate: Candidate, split: PackedSplit) -> list[int]:
    return candidate.token_ids + [split.layout.eos_id] * (candidate.finish_reason == "eos")
