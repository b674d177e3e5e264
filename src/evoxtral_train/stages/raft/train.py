"""`evoxtral raft train`: SFT on the curated candidates, from the adapter that wrote them."""

import time
from pathlib import Path

import torch

from ... import processes
from ...config.training import RaftConfig
from ...dataset.reader import PackedSplit
from ...errors import EvoxtralError, UsageError
from ...families.base import encode_text
from ...modeling.adapters import find_adapter, load_adapter
from ...modeling.bases import Base, open_adapter, open_audio, open_base_of, pick_device
from ...records import REFERENCE, Candidate, CuratedRow, iter_rows, read_rows
from ...runs import Options, Run, check_plan, require_same_config, require_same_input
from ...tracking import Tracker
from ...training.dataset import Target, TrainingSet
from ...training.trainer import train_adapter
from ..plans import plan_adapter, plan_curated, plan_model, plan_steps
from ..report import Report
from ..sft import adapter_facts, save_adapter
from . import rounds as raft_folders


def run(config: RaftConfig, options: Options) -> Report:
    """Writes `train/adapter/`. The clips are laid out by the function that laid them out for
    generation; only the target's text is the candidate's."""
    if options.dry_run:
        return plan(config, options)
    processes.join(config.model.device)
    source = raft_folders.curated(config)
    curated_fingerprint = raft_folders.require_step(config, "curate")
    candidates_folder = raft_folders.candidates(config)
    fingerprint = raft_folders.require_step(config, "generate")
    require_same_input(source, "candidates", fingerprint, str(candidates_folder))
    require_same_config(source, raft_folders.asked(config, "curate"), ("curate",))
    split = PackedSplit(config.dataset, config.split)
    require_same_input(candidates_folder, "dataset", split.fingerprint, str(config.dataset))
    curated = _read_curated(source / "curated.jsonl")
    base = open_base_of(split, config.model)
    adapter = open_adapter(config.adapter, base, config.model)
    require_same_input(candidates_folder, "adapter", adapter.fingerprint, str(config.adapter))
    inputs = {
        "dataset": split.fingerprint, "base": base.fingerprint, "adapter": adapter.fingerprint,
        "curated": curated_fingerprint,
    }  # fmt: skip
    asked = raft_folders.asked(config, "train")
    sources = [config.dataset, base.folder, config.adapter, source, candidates_folder]
    run = processes.first(lambda: Run.open(raft_folders.trained(config), "raft train", asked, inputs, options, sources))
    started = time.monotonic()
    torch.manual_seed(config.train.seed)
    network = load_adapter(base.family.load(config.model.dtype), adapter, trainable=True)
    if config.train.gradient_checkpointing:
        network.checkpoint_language_model()
    count, targets = network.sizes(), _targets(curated, candidates_folder, split, base)
    cache = open_audio(config, network, base, split, _room_needed(targets, split))
    train = TrainingSet(split, targets, cache, config.train.pad_weight)
    if cache:
        network.drop_audio_path()
    network.place_language_model(pick_device(config.model.device))
    with Tracker(config.tracking, "raft train", run.path, config) as tracker:
        checkpoints = run.path / "checkpoints"
        measures = train_adapter(network, train, None, config.train, checkpoints, run.resumed, tracker)
        metrics = processes.first(lambda: save_adapter(run, network.model, measures | count, started, tracker))
    processes.first(lambda: run.finish(metrics, find_adapter(run.path / "adapter").fingerprint))
    return Report("raft train", adapter_facts(raft_folders.trained(config), metrics))


def plan(config: RaftConfig, options: Options) -> Report:
    check_plan(raft_folders.trained(config), "raft train", raft_folders.asked(config, "train"), options)
    curated = raft_folders.curated(config) / "curated.jsonl"
    if curated.is_file():
        rows = len(_read_curated(curated))
    else:
        rows = plan_curated(config.dataset, config.split, config.curate)
    adapter, lora = plan_adapter(config.adapter)
    facts = plan_model(config.model, lora) | adapter | plan_steps(rows, config.train)
    return Report("plan: raft train", facts | {"output": raft_folders.trained(config)})


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
    written = {}
    if split.layout.has_times:
        keys = {(row.utterance_id, row.candidate_id) for row in curated}
        rows = iter_rows(candidates / "candidates.jsonl", Candidate)
        written = {key: each.token_ids for each in rows if (key := (each.utterance_id, each.candidate_id)) in keys}
    targets = []
    for row in curated:
        index, key = split.index_of[row.utterance_id], (row.utterance_id, row.candidate_id)
        if row.candidate_id == REFERENCE:
            targets.append(Target(index, split.examples[index].target_ids))
        else:
            targets.append(Target(index, written.get(key) or encode_text(base.tokenizer, row.target_text)))
    return targets
