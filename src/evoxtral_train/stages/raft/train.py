"""`evoxtral raft train`: SFT on the curated candidates, from the adapter that wrote them."""

from pathlib import Path

import torch

from ... import processes
from ...dataset.reader import PackedSplit
from ...errors import EvoxtralError, UsageError
from ...families.base import encode_text
from ...modeling.adapters import load_adapter
from ...modeling.bases import Base, Inputs, open_audio
from ...records import REFERENCE, Candidate, CuratedRow, iter_rows, read_rows
from ...reporting.training import adapter_facts
from ...runs import Options, require_same_input
from ...training.dataset import Target, TrainingSet
from ...training.trainer import train_and_save
from ..plans import plan_adapter, plan_curated, plan_model, plan_steps
from ..report import Report
from .rounds import RaftRound


def run(round_: RaftRound, options: Options) -> Report:
    """Writes `train/adapter/`. The clips are laid out by the function that laid them out for
    generation; only the target's text is the candidate's."""
    if options.dry_run:
        return plan(round_, options)
    # 1. What it reads.
    config, job = round_.config, round_.job("train", options)
    processes.join(config.model.device)
    curated = round_.require_curated()
    split = round_.require_split()
    rows = _read_curated(round_.curated / "curated.jsonl")
    inputs = Inputs.open(config, split)
    require_same_input(round_.candidates, "adapter", inputs.adapter.fingerprint, str(config.adapter))
    fingerprints = inputs.fingerprints | {"curated": curated["curated"]}
    with job.shared(fingerprints, [*inputs.sources, round_.curated, round_.candidates]) as work:
        # 2. The base with the adapter that wrote the candidates.
        torch.manual_seed(config.train.seed)
        network = load_adapter(inputs.base.family.load(config.model.dtype), inputs.adapter, trainable=True)
        # 3. The rows.
        targets = _targets(rows, round_.candidates, split, inputs.base)
        cache = open_audio(config, network, inputs.base, split, _room_needed(targets, split))
        train = TrainingSet(split, targets, cache, config.train.pad_weight)
        # 4. Training.
        metrics = train_and_save(work, config, network, cache, train)
    return Report("raft train", adapter_facts(job.output, metrics))


def plan(round_: RaftRound, options: Options) -> Report:
    config, job = round_.config, round_.job("train", options)
    job.check()
    curated = round_.curated / "curated.jsonl"
    if curated.is_file():
        rows = len(_read_curated(curated))
    else:
        rows = plan_curated(config.dataset, config.split, config.curate)
    adapter, lora = plan_adapter(config.adapter)
    facts = plan_model(config.model, lora) | adapter | plan_steps(rows, config.train)
    return Report("plan: raft train", facts | {"output": job.output})


def _read_curated(path: Path) -> list[CuratedRow]:
    rows = read_rows(path, CuratedRow)
    if not rows:
        raise UsageError("there is no row to train on", where=str(path), fix="curate again with --overwrite")
    return rows


def _room_needed(targets: list[Target], split: PackedSplit) -> int:
    """How far the longest target and its EOS reach past the place from which room is counted."""
    reaches = []
    for target in targets:
        clip = split.clip(target.index)
        reaches.append(split.layout.prompt_tokens(clip) + len(target.target_ids) + 1 - split.layout.room_start(clip))
    return max(reaches)


def _targets(curated: list[CuratedRow], candidates: Path, split: PackedSplit, base: Base) -> list[Target]:
    """The curated texts as target ids. Where positions are times these are the candidate's own tokens: a text alone would
    lose when each piece was written."""
    missing = [row.utterance_id for row in curated if row.utterance_id not in split.index_of]
    if missing:
        raise EvoxtralError(f"curated clip {missing[0]!r} is not in the split", fix="run the four steps again")
    token_ids = {}
    if split.layout.has_times:
        keys = {(row.utterance_id, row.candidate_id) for row in curated}
        rows = iter_rows(candidates / "candidates.jsonl", Candidate)
        token_ids = {key: row.token_ids for row in rows if (key := (row.utterance_id, row.candidate_id)) in keys}
    targets = []
    for row in curated:
        index, key = split.index_of[row.utterance_id], (row.utterance_id, row.candidate_id)
        if row.candidate_id == REFERENCE:
            targets.append(Target(index, split.examples[index].target_ids))
        else:
            targets.append(Target(index, token_ids.get(key) or encode_text(base.tokenizer, row.target_text)))
    return targets
