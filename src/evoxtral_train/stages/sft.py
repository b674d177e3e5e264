"""`evoxtral sft`: a LoRA adapter, or a full fine-tune, from a packed dataset."""

import torch

from .. import processes
from ..config.training import SftConfig
from ..dataset.augmentation import Augmenter, check_augmentation
from ..dataset.reader import PackedSplit
from ..jobs import Job
from ..modeling.adapters import add_lora, unfreeze
from ..modeling.bases import open_audio, open_base_of
from ..reporting.training import training_facts
from ..run_folders import is_complete
from ..runs import Options
from ..training.dataset import TrainingSet
from ..training.trainer import check_launch, train_and_save
from ..training.validation import ClipDecoder, Validation, decoded_examples, validation_split
from .plans import count_packed_rows, plan_cache, plan_decoding, plan_machine, plan_steps, plan_training, trained_network
from .report import Report


def run(config: SftConfig, options: Options) -> Report:
    """Writes `adapter/` (PEFT format) or `model/` (a whole checkpoint), `checkpoints/` and the metrics."""
    job = Job("sft", config.output, config.model_dump(mode="json"), config, options)
    if options.dry_run:
        return _plan(job, config)
    # 1. What it reads.
    processes.join(config.model.device)
    _check_machine(config)
    split, held_out = PackedSplit(config.dataset, "train"), validation_split(config)
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
            validation = Validation(TrainingSet(held_out, None, audio, pad_weight), clips, config.validation.measure)
        augmenter = Augmenter(config.augmentation, split, base.family) if config.augmentation.probability else None
        train = TrainingSet(split, None, cache, pad_weight, augmenter)
        # 4. Training.
        metrics = train_and_save(work, config, base, network, cache, train, validation)
    return Report("sft", training_facts(config.output, config.train, metrics))


def _check_machine(config: SftConfig) -> None:
    check_launch(config.train, config.model.device)
    check_augmentation(config.augmentation)


def _plan(job: Job, config: SftConfig) -> Report:
    """Rows, steps and sizes, without weights: for the 4B model too, this needs no network and no GPU."""
    job.check()
    facts = plan_training(config.model, config.train, config.lora)
    facts |= plan_steps(count_packed_rows(config.dataset, "train"), config.train)
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
    return {"validation": f"{len(split)} clips{decoded}, every {steps} steps; the best in {chosen.measure} is kept"}
