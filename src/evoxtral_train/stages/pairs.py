"""`evoxtral raft pairs`: the best and the worst candidate of each clip, for DPO in TRL's preference format."""

from ..config.schema import RaftConfig
from ..data import layouts
from ..data.packed import PackedSplit
from ..errors import EvoxtralError, UsageError
from ..files import fingerprint_files
from ..records import Candidate, PreferencePair, ScoredCandidate, read_rows
from ..runs import Options, Run, check_output, require_complete, require_same_config, require_same_input
from ..scoring.curation import best_and_worst
from ..tracking import Tracker
from . import raft_folders
from .inputs import Base, open_base
from .report import Report


def run(config: RaftConfig, options: Options) -> Report:
    """Writes `pairs/pairs.jsonl`. A clip whose rewards are no further apart than `pairs.min_gap` gives no pair."""
    source, candidates_folder = raft_folders.scores(config), raft_folders.candidates(config)
    scores_fingerprint = require_complete(source, "raft score", "evoxtral raft score configs/raft.yaml")
    fingerprint = require_complete(candidates_folder, "raft generate", "evoxtral raft generate configs/raft.yaml")
    require_same_input(source, "candidates", fingerprint, str(candidates_folder))
    require_same_config(source, raft_folders.asked(config, "score"), ("score",))
    split = PackedSplit(config.dataset, config.split)
    require_same_input(candidates_folder, "dataset", split.fingerprint, str(config.dataset))
    candidates = read_rows(candidates_folder / "candidates.jsonl", Candidate)
    scores = read_rows(source / "scores.jsonl", ScoredCandidate)
    try:
        chosen = best_and_worst(candidates, scores, config.pairs.min_gap)
    except ValueError as error:
        raise EvoxtralError(str(error), where=str(source), fix="score again with --overwrite") from None
    if not chosen:
        raise UsageError("no clip has two candidates that far apart", where="pairs.min_gap", fix="lower it, or sample hotter")
    clips = len({each.utterance_id for each in candidates})
    facts = {
        "clips": f"{clips} = {len(chosen)} pairs + {clips - len(chosen)} without",
        "mean gap of the rewards": f"{sum(best.reward - worst.reward for best, worst in chosen) / len(chosen):.4f}",
        "output": raft_folders.pairs(config),
    }
    asked, inputs = raft_folders.asked(config, "pairs"), {"candidates": fingerprint, "scores": scores_fingerprint}
    if options.dry_run:
        check_output(raft_folders.pairs(config), "raft pairs", asked, inputs, options)
        return Report("plan: raft pairs", facts)
    rows = _pairs(chosen, candidates, split, open_base(config.model, split))
    run = Run.open(raft_folders.pairs(config), "raft pairs", asked, inputs, options, [source, candidates_folder, config.dataset])
    with Tracker(config.tracking, "raft pairs", run.path, config) as tracker:
        run.write_rows("pairs.jsonl", rows)
        metrics = {"clips": clips, "pairs": len(rows)}
        tracker.summary(metrics)
    run.finish(metrics, fingerprint_files([run.path / "pairs.jsonl"]))
    return Report("raft pairs", facts)


def _pairs(
    chosen: list[tuple[ScoredCandidate, ScoredCandidate]], candidates: list[Candidate], split: PackedSplit, base: Base
) -> list[PreferencePair]:
    by_key = {(each.utterance_id, each.candidate_id): each for each in candidates}
    rows = []
    for best, worst in chosen:
        index = split.index_of[best.utterance_id]
        better, worse = (by_key[each.utterance_id, each.candidate_id] for each in (best, worst))
        rows.append(
            PreferencePair(
                utterance_id=best.utterance_id,
                audio=str(split.audio_of(index)),
                prompt="",
                chosen=better.text,
                rejected=worse.text,
                prompt_ids=layouts.prompt_ids(split.layout, base.clock, int(split.utterance_tokens[index])),
                chosen_ids=_with_end(better, base),
                rejected_ids=_with_end(worse, base),
                chosen_reward=best.reward,
                rejected_reward=worst.reward,
            )
        )
    return rows


def _with_end(candidate: Candidate, base: Base) -> list[int]:
    return candidate.token_ids + [base.clock.eos_id] * (candidate.finish_reason == "eos")
