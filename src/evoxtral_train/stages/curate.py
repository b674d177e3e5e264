"""`evoxtral raft curate`: the best candidate per clip, less the lowest share. Needs no torch."""

from statistics import fmean

from ..config.schema import RaftConfig
from ..data.packed import PackedSplit
from ..errors import EvoxtralError, UsageError
from ..files import fingerprint_files
from ..records import Candidate, ScoredCandidate, read_rows
from ..runs import Options, Run, check_output, require_complete, require_same_config, require_same_input
from ..scoring.curation import curate, replay
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
    wanted = config.curate
    try:
        curated, dropped = curate(candidates, scores, wanted)
    except ValueError as error:
        raise EvoxtralError(str(error), where=str(source), fix="score again with --overwrite") from None
    if not curated:
        clips = len({each.utterance_id for each in candidates})
        fix = f"drop a smaller share, or do not skip the clips without spread; first reason: {dropped[0].reason}"
        raise UsageError(f"of {clips:,} clips none is left", where="curate", fix=fix)
    reward = fmean(each.reward for each in curated)
    best = len(curated)
    if wanted.reference_replay:
        split = PackedSplit(config.dataset, config.split)
        references = {example.id: example.target_text for example in split.examples}
        curated = replay(curated, references, wanted.reference_replay, wanted.seed)
    facts = {
        "candidates": f"{len(candidates)} = {best} curated + {len(dropped)} dropped",
        "replayed references": len(curated) - best,
        "mean reward of the curated": f"{reward:.4f}",
        "output": raft_folders.curated(config),
    }
    if options.dry_run:
        check_output(raft_folders.curated(config), "raft curate", asked, inputs, options)
        return Report("plan: raft curate", facts)
    run = Run.open(raft_folders.curated(config), "raft curate", asked, inputs, options, [source, candidates_folder])
    with Tracker(config.tracking, "raft curate", run.path, config) as tracker:
        run.write_rows("curated.jsonl", curated)
        run.write_rows("dropped.jsonl", dropped)
        metrics = {
            "candidates": len(candidates),
            "curated": best,
            "replayed": len(curated) - best,
            "dropped": len(dropped),
            "mean_reward": reward,
            "lowest_reward": min(each.reward for each in curated[:best]),
        }
        tracker.summary(metrics)
        tracker.media_table(
            "raft/curated",
            ["utterance_id", "candidate_id", "target_text", "reward"],
            [[each.utterance_id, each.candidate_id, each.target_text, each.reward] for each in curated],
        )
    run.finish(metrics, fingerprint_files([run.path / "curated.jsonl"]))
    return Report("raft curate", facts)
