"""`evoxtral raft pairs`: the best and the worst candidate of each clip, for DPO in TRL's preference format."""

from array import array

from ...config.training import RaftConfig
from ...dataset.reader import PackedSplit
from ...errors import EvoxtralError, UsageError
from ...files import fingerprint_files
from ...modeling.bases import open_base_of
from ...raft.curation import best_and_worst
from ...records import Candidate, PreferencePair, ScoredCandidate
from ...runs import Options, Run, check_output, require_same_config, require_same_input
from ...tracking import Tracker
from ..report import Report
from . import rounds as raft_folders


def run(config: RaftConfig, options: Options) -> Report:
    """Writes `pairs/pairs.jsonl`. A clip whose rewards are no further apart than `pairs.min_gap` gives no pair."""
    source, candidates_folder = raft_folders.scores(config), raft_folders.candidates(config)
    scores_fingerprint = raft_folders.require_step(config, "score")
    fingerprint = raft_folders.require_step(config, "generate")
    require_same_input(source, "candidates", fingerprint, str(candidates_folder))
    require_same_config(source, raft_folders.asked(config, "score"), ("score",))
    split = PackedSplit(config.dataset, config.split)
    require_same_input(candidates_folder, "dataset", split.fingerprint, str(config.dataset))
    count, gaps = 0, array("d")
    try:
        for clip in raft_folders.scored_clips(config):
            count += 1
            best, worst = best_and_worst(clip)
            if _gap(best, worst) > config.pairs.min_gap:
                gaps.append(_gap(best, worst))
    except ValueError as error:
        raise EvoxtralError(str(error), where=str(source), fix="score again with --overwrite") from None
    if not gaps:
        raise UsageError("no clip has two candidates that far apart", where="pairs.min_gap", fix="lower it, or sample hotter")
    facts = {
        "clips": f"{count} = {len(gaps)} pairs + {count - len(gaps)} without",
        "mean gap of the rewards": f"{sum(gaps) / len(gaps):.4f}",
        "output": raft_folders.pairs(config),
    }
    asked, inputs = raft_folders.asked(config, "pairs"), {"candidates": fingerprint, "scores": scores_fingerprint}
    if options.dry_run:
        check_output(raft_folders.pairs(config), "raft pairs", asked, inputs, options)
        return Report("plan: raft pairs", facts)
    open_base_of(split, config.model)  # refuses a dataset of another base
    run = Run.open(raft_folders.pairs(config), "raft pairs", asked, inputs, options, [source, candidates_folder, config.dataset])
    with Tracker(config.tracking, "raft pairs", run.path, config) as tracker:
        chosen = (best_and_worst(clip) for clip in raft_folders.scored_clips(config))
        run.write_rows("pairs.jsonl", (_pair(*each, split) for each in chosen if _gap(*each) > config.pairs.min_gap))
        metrics = {"clips": count, "pairs": len(gaps)}
        tracker.summary(metrics)
    run.finish(metrics, fingerprint_files([run.path / "pairs.jsonl"]))
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
