"""`evoxtral sft`: a LoRA adapter, or a full fine-tune, from a packed dataset."""

import torch

from .. import processes
from ..config.training import SftConfig
from ..dataset.augmentation import Augmenter, check_augmentation
from ..dataset.reader import PackedSplit
from ..families.base import Network
from ..jobs import Job, Work
from ..modeling.adapters import add_lora, unfreeze
from ..modeling.bases import Base, open_audio, open_base_of, open_whole_clips, pick_device
from ..reading import read_record
from ..reporting.training import training_facts
from ..run_folders import is_complete
from ..runs import Options
from ..training.dataset import TrainingSet
from ..training.replay import check_replay, replayed_clips, with_replay
from ..training.trainer import check_launch, train_and_save
from ..training.validation import ClipDecoder, Validation, decoded_examples, validation_split
from .plans import count_packed_rows, plan_cache, plan_decoding, plan_machine, plan_steps, plan_training, trained_network
from .report import Report


def run(config: SftConfig, options: Options) -> Report:
    """Writes `adapter/` (PEFT format) or `model/` (a whole checkpoint), `checkpoints/`, `replay.jsonl` if there is any, and the
    metrics."""
    job = Job("sft", config.output, config.model_dump(mode="json"), config, options)
    if options.dry_run:
        return _plan(job, config)
    # 1. What it reads.
    processes.join(config.model.device)
    _check_machine(config)
    split, held_out = PackedSplit(config.dataset, "train"), validation_split(config)
    if config.replay.share:
        check_replay(config, split)
    base = open_base_of(split, config.model)
    inputs = {"dataset": split.fingerprint, "base": base.fingerprint}
    with job.shared(inputs, [config.dataset, base.family.folder]) as work:
        # 2. The base with a new adapter, or itself.
        torch.manual_seed(config.train.seed)
        network = base.family.load(config.model.dtype)
        if config.train.method == "full":
            network = unfreeze(network, config.train.train_audio_tower)
        else:
            network = add_lora(network, config.lora, config.model)
        # 3. The rows.
        pad_weight, cache = config.train.pad_weight, open_audio(config, network, base, split)
        validation = None
        if held_out:
            audio, decode = open_audio(config, network, base, held_out), config.validation.decode
            clips = ClipDecoder(decode, network, base.family.tokenizer, held_out, audio) if decode else None
            limit = config.validation.wer_regression_max
            validation = Validation(TrainingSet(held_out, None, audio, pad_weight), clips, config.validation.measure, limit)
            if limit is not None:
                clips.base_wer = _base_wer(config, work, network, base, held_out, clips)
        augmenter = Augmenter(config.augmentation, split, base.family) if config.augmentation.probability else None
        targets = None
        if config.replay.share:
            network.place_language_model(pick_device(config.model.device))
            targets = with_replay(config, network, base.family.tokenizer, split, cache, work.path / "replay.jsonl")
        train = TrainingSet(split, targets, cache, pad_weight, augmenter)
        # 4. Training.
        metrics = train_and_save(work, config, base, network, cache, train, validation)
    facts = training_facts(config.output, config.train, metrics)
    if targets is not None:
        planned, kept = len(replayed_clips(config, split)), len(targets) - len(split)
        facts["replay"] = f"{planned} = {kept} transcripts of the base + {planned - kept} cut short, left out"
    failed = not metrics.get("within_wer_regression_max", True)
    return Report("sft", facts, exit_code=3 if failed else 0)


def _base_wer(config: SftConfig, work: Work, network: Network, base: Base, split: PackedSplit, clips: ClipDecoder) -> float:
    """The WER of the base, in its own layout, on the decoded clips: measured once, and read back by a resumed run."""
    path = work.path / "base.json"
    if not processes.first(path.is_file):
        network.place_language_model(pick_device(config.model.device))
        audio = open_whole_clips(config, network, base, split)
        wer = clips.measure_base(base.family.own_layout(split.layout.room_tokens), audio)
        processes.first(lambda: work.run.write_json("base.json", {"wer": wer}))
    return read_record(path)["wer"]


def _check_machine(config: SftConfig) -> None:
    check_launch(config.train, config.model.device)
    check_augmentation(config.augmentation)


def _plan(job: Job, config: SftConfig) -> Report:
    """Rows, steps and sizes, without weights: for the 4B model too, this needs no network and no GPU."""
    job.check()
    facts = plan_training(config.model, config.train, config.lora)
    rows = count_packed_rows(config.dataset, "train")
    if is_complete(config.dataset) and config.replay.share:
        split = PackedSplit(config.dataset, "train")
        check_replay(config, split)
        replayed = len(replayed_clips(config, split))
        facts["replay"] = f"{replayed} transcripts of the base, beside {rows} clips"
        rows += replayed
    facts |= plan_steps(rows, config.train)
    if is_complete(config.dataset):
        facts |= _plan_validation(config, validation_split(config))
        facts |= plan_cache(config, trained_network(config.model, config.train, config.lora), ["train", "validation"])
    if config.validation.decode:
        dtype = "float32" if config.train.method == "full" else config.model.dtype
        facts |= plan_decoding(config.model, config.validation.decode.batch_tokens, dtype)
    facts |= plan_machine(lambda: _check_machine(config))
    return Report("plan: sft", facts | {"output": config.output})


def _plan_validation(config: SftConfig, split: PackedSplit | None) -> dict:
    chosen, steps = config.validation, config.train.evaluate_every_steps
    if split is None:
        return {"validation": "none; the last step's weights are kept"}
    decoded = f", {len(decoded_examples(chosen.decode, split))} of them decoded" if chosen.decode else ""
    limit = chosen.wer_regression_max
    within = "" if limit is None else f" of those at most {limit:g} above the base's WER"
    return {"validation": f"{len(split)} clips{decoded}, every {steps} steps; the best in {chosen.measure}{within} is kept"}
