"""`evoxtral raft curate`: the best candidate per clip, without the share of clips with the lowest rewards. Needs no torch."""

from collections.abc import Iterator, Mapping
from itertools import chain, islice
from statistics import fmean

from ...dataset.reader import PackedSplit
from ...errors import UsageError
from ...files import fingerprint_files
from ...raft.curation import Reference, Selection, replay
from ...records import CuratedRow, DroppedRow, iter_rows
from ...runs import Options
from ..report import Report
from .rounds import RaftRound

_TABLE_ROWS = 2000


def run(round_: RaftRound, options: Options) -> Report:
    """Writes `curated/curated.jsonl` and `curated/dropped.jsonl` (with reasons)."""
    # 1. What it reads, and what stays of it.
    inputs = round_.require_scores()
    config, rule = round_.config, round_.config.curate
    selection = Selection.of(round_.scored_clips(), rule)
    kept = len(selection.clips)
    if not kept:
        reason = next(selection.sort(next(round_.scored_clips()), rule)).reason
        fix = f"drop a smaller share, or do not skip the clips without spread; first reason: {reason}"
        raise UsageError(f"none of the {sum(1 for _ in round_.scored_clips()):,} clips is left", where="curate", fix=fix)
    replayed = []
    if rule.reference_replay:
        references = _References(PackedSplit(config.dataset, config.split))
        replayed = list(replay(selection.clips, references, rule.reference_replay, rule.seed))
    # 2. The plan.
    job = round_.job("curate", options)
    means = {profile: fmean(rewards) for profile, rewards in selection.rewards.items() if rewards}
    facts = {
        "candidates": f"{selection.candidates} = {kept} curated + {selection.candidates - kept} dropped",
        "replayed references": len(replayed),
        "mean reward of the curated": ", ".join(f"{profile} {mean:.4f}" for profile, mean in means.items()),
        "output": job.output,
    }
    if rule.reference_replay and not replayed:
        facts["replayed references"] = f"0: too few, or no clip of split {config.split} has a text"
    if len(selection.rewards) > 1:
        counts = ", ".join(f"{profile} {len(rewards)}" for profile, rewards in selection.rewards.items())
        facts["curated by profile"] = f"{counts}; the lowest were dropped within each, as their rewards cannot be compared"
    if options.dry_run:
        job.check(inputs)
        return Report("plan: raft curate", facts)
    # 3. The rows.
    with job.opened(inputs, [round_.scores, round_.candidates]) as work:

        def rows(kind: type) -> Iterator[CuratedRow | DroppedRow]:
            return (row for clip in round_.scored_clips() for row in selection.sort(clip, rule) if isinstance(row, kind))

        path = work.path / "curated.jsonl"
        work.run.write_rows(path.name, chain(rows(CuratedRow), replayed))
        work.run.write_rows("dropped.jsonl", rows(DroppedRow))
        metrics = {
            "candidates": selection.candidates,
            "curated": kept,
            "replayed": len(replayed),
            "dropped": selection.candidates - kept,
            "profiles": {
                profile: {"curated": len(rewards), "mean_reward": means.get(profile), "lowest_reward": min(rewards, default=None)}
                for profile, rewards in selection.rewards.items()
            },
        }
        work.tracker.summary(metrics)
        columns = ["utterance_id", "candidate_id", "target_text", "reward"]
        table = [[getattr(row, name) for name in columns] for row in islice(iter_rows(path, CuratedRow), _TABLE_ROWS)]
        work.tracker.media_table("raft/curated", columns, table)
        work.done(metrics, fingerprint_files([path]))
    # 4. The report.
    return Report("raft curate", facts)


class _References(Mapping):
    """clip -> its packed target, read on access; of the clips that have one."""

    def __init__(self, split: PackedSplit):
        self._split = split
        self._clips = [clip for clip, index in split.index_of.items() if split.labelled[index]]

    def __getitem__(self, clip: str) -> Reference:
        example = self._split.examples[self._split.index_of[clip]]
        return example.target_text, example.target_ids

    def __iter__(self) -> Iterator[str]:
        return iter(self._clips)

    def __len__(self) -> int:
        return len(self._clips)
