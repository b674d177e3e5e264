"""`evoxtral raft curate`: the best candidate per clip, less the lowest share. Needs no torch."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from functools import partial
from itertools import chain, islice
from statistics import fmean

from ...config.training import RaftConfig
from ...dataset.reader import PackedSplit
from ...errors import EvoxtralError, UsageError
from ...files import fingerprint_files
from ...raft.curation import Selection, replay
from ...records import CuratedRow, DroppedRow, iter_rows
from ...runs import Options, Run, check_output, require_same_config, require_same_input
from ...tracking import Tracker
from ..report import Report
from . import rounds as raft_folders

_TABLE_ROWS = 2000


def run(config: RaftConfig, options: Options) -> Report:
    """Writes `curated/curated.jsonl` and `curated/dropped.jsonl` (with reasons)."""
    source = raft_folders.scores(config)
    scores_fingerprint = raft_folders.require_step(config, "score")
    candidates_folder = raft_folders.candidates(config)
    fingerprint = raft_folders.require_step(config, "generate")
    require_same_input(source, "candidates", fingerprint, str(candidates_folder))
    require_same_config(source, raft_folders.asked(config, "score"), ("score",))
    asked, inputs = raft_folders.asked(config, "curate"), {"candidates": fingerprint, "scores": scores_fingerprint}
    wanted = config.curate
    clips = partial(raft_folders.scored_clips, config)
    try:
        selection = Selection.of(clips(), wanted)
    except ValueError as error:
        raise EvoxtralError(str(error), where=str(source), fix="score again with --overwrite") from None
    best = len(selection.clips)
    if not best:
        reason = next(selection.sort(next(clips()), wanted)).reason
        fix = f"drop a smaller share, or do not skip the clips without spread; first reason: {reason}"
        raise UsageError(f"of {sum(1 for _ in clips()):,} clips none is left", where="curate", fix=fix)
    replayed = []
    if wanted.reference_replay:
        references = _References(PackedSplit(config.dataset, config.split))
        replayed = list(replay(selection.clips, references, wanted.reference_replay, wanted.seed))
    facts = {
        "candidates": f"{selection.candidates} = {best} curated + {selection.candidates - best} dropped",
        "replayed references": len(replayed),
        "mean reward of the curated": f"{fmean(selection.rewards):.4f}",
        "output": raft_folders.curated(config),
    }
    if options.dry_run:
        check_output(raft_folders.curated(config), "raft curate", asked, inputs, options)
        return Report("plan: raft curate", facts)
    run = Run.open(raft_folders.curated(config), "raft curate", asked, inputs, options, [source, candidates_folder])
    with Tracker(config.tracking, "raft curate", run.path, config) as tracker:

        def rows(kind: type) -> Iterator[CuratedRow | DroppedRow]:
            return (row for clip in clips() for row in selection.sort(clip, wanted) if isinstance(row, kind))

        run.write_rows("curated.jsonl", chain(rows(CuratedRow), replayed))
        run.write_rows("dropped.jsonl", rows(DroppedRow))
        metrics = {
            "candidates": selection.candidates,
            "curated": best,
            "replayed": len(replayed),
            "dropped": selection.candidates - best,
            "mean_reward": fmean(selection.rewards),
            "lowest_reward": min(selection.rewards),
        }
        tracker.summary(metrics)
        tracker.media_table(
            "raft/curated",
            ["utterance_id", "candidate_id", "target_text", "reward"],
            [list(asdict(row).values()) for row in islice(iter_rows(run.path / "curated.jsonl", CuratedRow), _TABLE_ROWS)],
        )
    run.finish(metrics, fingerprint_files([run.path / "curated.jsonl"]))
    return Report("raft curate", facts)


class _References(Mapping):
    """clip -> its target text, read when it is asked for."""

    def __init__(self, split: PackedSplit):
        self._split = split

    def __getitem__(self, clip: str) -> str:
        return self._split.examples[self._split.index_of[clip]].target_text

    def __iter__(self) -> Iterator[str]:
        return iter(self._split.index_of)

    def __len__(self) -> int:
        return len(self._split)
