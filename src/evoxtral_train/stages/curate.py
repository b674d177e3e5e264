"""`evoxtral raft curate`: the best candidate per clip, less the lowest share. Needs no torch."""

from statistics import fmean

from ..config.schema import RaftConfig
from ..errors import EvoxtralError, UsageError
from ..records import Candidate, ScoredCandidate, read_rows
from ..runs import Options, Run, check_output, fingerprint_files, require_complete, require_same_config, require_same_input
from ..scoring.curation import curate
from ..tracking import Tracker
from . import raft_folders
from .report import Report


def run(config: RaftConfig, options: Options) -> Report:
    """Writes `curated/curated.jsonl` and `curated/dropped.jsonl` (with reasons)."""
    source = raft_folders.scores(config)
    scores_fingerprint = require_complete(source, "raft score", "evoxtral raft score configs/raft.yaml")
    candidates_folder = raft_folders.candidates(config)
    fingerprint = require_complete(candidates_folder, "raft generate", "evoxtral raft generate configs/raft.yaml")
    require_same_input(source, "candidates", fingerprint, str(candidates_folder))
    require_same_config(source, raft_folders.asked(config, "score"), ("score",))
    asked, inputs = raft_folders.asked(config, "curate"), {"candidates": fingerprint, "scores": scores_fingerprint}
    candidates = read_rows(candidates_folder / "candidates.jsonl", Candidate)
    scores = read_rows(source / "scores.jsonl", ScoredCandidate)
    try:
        curated, dropped = curate(candidates, scores, config.curate.drop_lowest_share)
    except ValueError as error:
        raise EvoxtralError(str(error), where=str(source), fix="score again with --overwrite") from None
    if not curated:
        raise UsageError("no clip is left", where="curate.drop_lowest_share", fix="drop a smaller share")
    facts = {
        "candidates": f"{len(candidates)} = {len(curated)} curated + {len(dropped)} dropped",
        "mean reward of the curated": f"{fmean(each.reward for each in curated):.4f}",
        "output": raft_folders.curated(config),
    }
    if options.dry_run:
        check_output(raft_folders.curated(config), "raft curate", asked, inputs, options)
        return Report("plan: raft curate", facts)
    run = Run.open(raft_folders.curated(config), "raft curate", asked, inputs, options)
    with Tracker(config.tracking, "raft curate", run.path, config) as tracker:
        run.write_rows("curated.jsonl", curated)
        run.write_rows("dropped.jsonl", dropped)
        metrics = {
            "candidates": len(candidates),
            "curated": len(curated),
            "dropped": len(dropped),
            "mean_reward": fmean(each.reward for each in curated),
            "lowest_reward": min(each.reward for each in curated),
        }
        tracker.summary(metrics)
        tracker.table(
            "raft/curated",
            ["utterance_id", "candidate_id", "target_text", "reward"],
            [[each.utterance_id, each.candidate_id, each.target_text, each.reward] for each in curated],
        )
        run.finish(metrics, fingerprint_files([run.path / "curated.jsonl"]))
    return Report("raft curate", facts)
