"""`evoxtral raft train`: SFT on the curated candidates, from the adapter that wrote them."""

from pathlib import Path

import torch

from ... import processes
from ...dataset.reader import PackedSplit
from ...errors import EvoxtralError, UsageError
from ...modeling.adapters import unfreeze
from ...modeling.bases import Inputs, load_network, open_audio
from ...records import CuratedRow, read_rows
from ...reporting.training import training_facts
from ...runs import Options, require_same_input
from ...text.tags import find_tags
from ...training.dataset import Target, TrainingSet
from ...training.trainer import check_launch, train_and_save
from ..plans import plan_curated, plan_machine, plan_start, plan_steps
from ..report import Report
from .rounds import RaftRound


def run(round_: RaftRound, options: Options) -> Report:
    """Writes `train/adapter/`. The clips are laid out as for generation; only the target differs: it is the candidate's,
    token for token."""
    if options.dry_run:
        return plan(round_, options)
    # 1. What it reads.
    config, job = round_.config, round_.job("train", options)
    processes.join(config.model.device)
    check_launch(config.train, config.model.device)
    curated = round_.require_curated()
    split = round_.require_split()
    targets = targets_of(_read_curated(round_.curated / "curated.jsonl"), split)
    inputs = Inputs.open(config, split)
    require_same_input(round_.candidates, "adapter", inputs.adapter.fingerprint, str(config.adapter))
    fingerprints = inputs.fingerprints | {"curated": curated["curated"]}
    with job.shared(fingerprints, [*inputs.sources, round_.curated, round_.candidates]) as work:
        # 2. The base with the adapter that wrote the candidates.
        torch.manual_seed(config.train.seed)
        network = load_network(inputs.base, config.model.dtype, inputs.adapter, trainable=True)
        if config.train.method == "full":
            network = unfreeze(network, config.train.train_audio_tower)
        # 3. The rows.
        cache = open_audio(config, network, inputs.base, split, _room_needed(targets, split))
        train = TrainingSet(split, targets, cache, config.train.pad_weight)
        # 4. Training.
        metrics = train_and_save(work, config, inputs.base, network, cache, train)
    return Report("raft train", training_facts(job.output, config.train, metrics))


def plan(round_: RaftRound, options: Options) -> Report:
    config, job = round_.config, round_.job("train", options)
    job.check()
    curated = round_.curated / "curated.jsonl"
    if curated.is_file():
        rows = len(_read_curated(curated))
    else:
        rows = plan_curated(config)
    facts = plan_start(config) | plan_steps(rows, config.train)
    facts |= plan_machine(lambda: check_launch(config.train, config.model.device))
    return Report("plan: raft train", facts | {"output": job.output})


def _read_curated(path: Path) -> list[CuratedRow]:
    rows = read_rows(path, CuratedRow)
    if not rows:
        raise UsageError("there is no row to train on", where=str(path), fix="curate again with --overwrite")
    return rows


def _end(target: Target, split: PackedSplit) -> int:
    """The position after the target's EOS."""
    return split.layout.prompt_tokens(split.clip(target.index)) + len(target.target_ids) + 1


def _room_needed(targets: list[Target], split: PackedSplit) -> int:
    """The most tokens from `room_start` to the end of a target and its EOS."""
    return max(_end(target, split) - split.layout.room_start(split.clip(target.index)) for target in targets)


def targets_of(curated: list[CuratedRow], split: PackedSplit) -> list[Target]:
    """The curated tokens on their clips. EOS is added and learned, as for any target, even if decoding was cut at
    `generate.max_new_tokens`: the reward scored the text as if it ended there. Raises UsageError when EOS does not fit."""
    targets = []
    for row in curated:
        if row.utterance_id not in split.index_of:
            fix = "generate, score and curate again with --overwrite"
            raise EvoxtralError(f"curated clip {row.utterance_id!r} is not in the split", fix=fix)
        target = Target(split.index_of[row.utterance_id], row.token_ids, find_tags(row.target_text))
        clip = split.clip(target.index)
        if _end(target, split) > clip.row_tokens:
            what = f"candidate {row.candidate_id} of clip {row.utterance_id!r} fills its row, so EOS does not fit after it"
            fix = "set it below the dataset's layout.room_tokens, and generate again"
            raise UsageError(what, where="generate.max_new_tokens", fix=fix)
        targets.append(target)
    return targets
