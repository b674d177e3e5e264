"""`evoxtral sft`: a LoRA adapter, or a full fine-tune, from a packed dataset."""

import torch

from .. import processes
from ..config.training import SftConfig
from ..dataset.augmentation import Augmenter, check_folders
from ..dataset.reader import PackedSplit, has_split
from ..jobs import Job
from ..modeling.adapters import add_lora, unfreeze
from ..modeling.bases import open_audio, open_base_of
from ..reporting.training import training_facts
from ..runs import Options
from ..training.dataset import TrainingSet
from ..training.trainer import check_launch, train_and_save
from .plans import count_packed_rows, plan_steps, plan_training
from .report import Report


def run(config: SftConfig, options: Options) -> Report:
    """Writes `adapter/` (PEFT format) or `model/` (a whole checkpoint), `checkpoints/` and the metrics."""
    job = Job("sft", config.output, config.model_dump(mode="json"), config, options)
    if options.dry_run:
        return _plan(job, config)
    # 1. What it reads.
    processes.join(config.model.device)
    check_launch(config.train, config.model.device)
    if config.augmentation.probability:
        check_folders(config.augmentation)
    split = PackedSplit(config.dataset, "train")
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
        if has_split(config.dataset, "validation"):
            held_out = PackedSplit(config.dataset, "validation")
            validation = TrainingSet(held_out, None, open_audio(config, network, base, held_out), pad_weight)
        augmenter = Augmenter(config.augmentation, split, base.family) if config.augmentation.probability else None
        train = TrainingSet(split, None, cache, pad_weight, augmenter)
        # 4. Training.
        metrics = train_and_save(work, config, base, network, cache, train, validation)
    return Report("sft", training_facts(config.output, config.train, metrics))


def _plan(job: Job, config: SftConfig) -> Report:
    """Rows, steps and sizes, without weights: for the 4B model too, this needs no network and no GPU."""
    job.check()
    facts = plan_training(config.model, config.train, config.lora)
    facts |= plan_steps(count_packed_rows(config.dataset, "train"), config.train)
    return Report("plan: sft", facts | {"output": config.output})
