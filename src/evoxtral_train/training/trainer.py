"""The only place that sets up `transformers.Trainer`: SFT and SFT on curated rows both use it."""

import math
import os
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from peft import PeftModel
from safetensors.torch import save_file
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainerState, TrainingArguments
from transformers.trainer_utils import rotate_checkpoints

from .. import processes
from ..config.training import RaftConfig, SftConfig, Train
from ..errors import EvoxtralError, UsageError
from ..families.base import Network
from ..jobs import Work
from ..modeling.adapter_record import AdapterRecord
from ..modeling.adapters import FOLDERS, find_adapter
from ..modeling.audio_cache import CachedAudio
from ..modeling.bases import Base, pick_device
from ..modeling.out_of_memory import shrink
from ..modeling.release import write_full_model
from ..modeling.weights import require_finite_weights, save_errors
from ..progress import Progress
from ..runs import read_run
from ..scoring.figures import FIGURES, shown
from ..tracking import Tracker
from .checkpoints import last_whole_checkpoint, step_of
from .clip_weights import clip_weights
from .dataset import EvenRows, StepSampler, TrainingSet
from .validation import Validation


def train_and_save(
    work: Work, config: SftConfig | RaftConfig, base: Base, network: Network, cache: CachedAudio | None, train: TrainingSet,
    validation: Validation | None = None,
) -> dict:  # fmt: skip
    """Train the network's adapter and save it to `adapter/`, or for a full fine-tune the network itself to `model/`; returns the
    metrics. `cache`: the source of the audio of `train`; the parts that it replaces are freed. Raises EvoxtralError when a weight
    is not finite."""
    sizes = network.sizes()
    if config.train.gradient_checkpointing:
        network.checkpoint_language_model()
    if cache and (validation is None or validation.rows.cache):
        network.drop_audio_path(projector=cache.stage == "embeds")
    network.place_language_model(pick_device(config.model.device))
    measures, weights = train_network(
        network, train, validation, config.train, config.model.dtype, work.path / "checkpoints", work.run.resumed, work.tracker
    )
    require_finite_weights(network.model, measures["steps"], "lower train.learning_rate, and start again with --overwrite")
    folder = work.path / FOLDERS[config.train.method]

    def save() -> dict:
        with save_errors(folder):
            if config.train.method == "full":
                write_full_model(base, config.model.dtype, weights, folder)
            else:
                network.model.save_pretrained(folder, state_dict=weights)
            AdapterRecord.of(train.split, read_run(work.path)["inputs"]["base"]).write(folder)
        return _finish(work, folder, measures | sizes)

    return processes.first(save)


def _finish(work: Work, folder: Path, measures: dict) -> dict:
    metrics = measures | {"seconds": work.seconds()}
    if torch.cuda.is_available():
        metrics["peak_memory_bytes"] = torch.cuda.max_memory_allocated()
    work.tracker.summary(metrics)
    if adapter := sorted(folder.glob("adapter_*")):  # a full model is too large to upload
        work.tracker.artifact(f"{work.run.output.name}-adapter", "model", adapter)
    work.done(metrics, find_adapter(folder).fingerprint)
    return metrics


def optimizer_steps(rows: int, config: Train) -> int:
    """727 rows at batch 2 × 8, one epoch -> 46: the last, smaller accumulation counts as a step."""
    batches = math.ceil(rows / config.batch_size)
    return math.ceil(config.epochs * math.ceil(batches / config.gradient_accumulation))


def check_launch(config: Train, device: str) -> None:
    """Raises UsageError for an optimizer that cannot run here, and for the first version of FSDP."""
    if processes.is_sharded() and os.environ.get("FSDP_VERSION") != "2":
        what = "version 1 of FSDP is not supported: it needs weights of one dtype"
        raise UsageError(what, where="fsdp_version in accelerate's config", fix="set it to 2")
    if config.optimizer == "adamw":
        return
    problem, fix = None, "set it to adamw"
    if pick_device(device).type != "cuda":
        problem = "runs only on CUDA"
    elif find_spec("bitsandbytes") is None:
        problem, fix = "needs bitsandbytes, which is not installed", "run: pip install bitsandbytes; or set it to adamw"
    elif processes.is_sharded():
        problem = "does not run with FSDP, which shards the states anyway"
    if problem:
        raise UsageError(f"{config.optimizer} {problem}", where="train.optimizer", fix=fix)


def train_network(
    network: Network, train: TrainingSet, validation: Validation | None, config: Train, dtype: str,
    folder: Path, resume: bool, tracker: Tracker,
) -> tuple[dict, dict[str, torch.Tensor]]:  # fmt: skip
    """Train the network's unfrozen weights in place; with a validation, the best checkpoint by its measure is kept; of
    equals, the first. `dtype`: as in `Model`; with bfloat16, matrices are multiplied in it, and the trained weights stay float32.

    Checkpoints go to `folder`; `resume` continues from the last complete one. An optimizer step sees
    `batch_size` × `gradient_accumulation` rows on any number of processes: each accumulates less. When CUDA
    runs out of memory the batch is made smaller and the accumulation larger, and training continues from
    the last checkpoint. Returns the measures and all weights (empty in other processes than the first, if they are sharded).
    Raises EvoxtralError as soon as the loss, the gradients or the weights
    are not finite; earlier checkpoints stay.
    """
    batch, accumulation = micro_batches(config, config.batch_size)
    even = config.sampling == "natural" and config.untagged_share is None
    model = network.model
    if processes.is_sharded():  # accelerate looks for every kind of layer that is sharded alone, those of a dropped tower too
        kinds = {type(part).__name__ for part in model.modules()}
        network.stock._no_split_modules = sorted(kinds & {*network.stock._no_split_modules})
    weights = None if even else clip_weights(train.tags(), config.sampling, config.untagged_share)
    trained = {name: each for name, each in model.named_parameters() if each.requires_grad}
    beginning = {}
    if processes.count() == 1:  # several processes do not begin again
        beginning = {name: each.detach().to("cpu", copy=True) for name, each in trained.items()}
    while True:
        arguments = _arguments(network.device, config, dtype, folder, validation, batch, accumulation)
        watcher = _Watcher(tracker, optimizer_steps(len(train), config), _remedy(config))
        multiple = batch * processes.count() if processes.count() > 1 else 1
        trainer = _Trainer(
            model=model,
            args=arguments,
            train_dataset=EvenRows(train, multiple),
            eval_dataset=EvenRows(validation.rows, multiple) if validation else None,
            data_collator=network.collate,
            callbacks=[watcher],
        )
        trainer.weights, trainer.keep_checkpoints, trainer.remedy = weights, config.keep_checkpoints, _remedy(config)
        trainer.validation = validation
        trainer.pop_callback(PrinterCallback)
        checkpoint = _checkpoint_to_resume(folder) if resume else None
        try:
            output = trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
            break
        except torch.OutOfMemoryError:
            if processes.count() > 1:  # the others wait for this process's gradients and cannot change their batch size with it
                raise EvoxtralError(
                    f"out of memory with {batch} rows at once on one of {processes.count()} processes",
                    fix="lower train.batch_size and raise train.gradient_accumulation by as much, then resume with --resume",
                ) from None
        finally:
            watcher.close()
            if config.neftune_alpha and hasattr(trainer, "neftune_hook_handle"):  # the Trainer leaves its hook when it fails
                trainer.neftune_hook_handle.remove()
        smaller, accumulation = micro_batches(config, batch - 1) if batch > 1 else (None, None)
        batch, resume = shrink(batch, smaller, "rows"), True
        model.zero_grad(set_to_none=True)
        with torch.no_grad():  # a checkpoint, if there is one, replaces them
            for name, each in trained.items():
                each.copy_(beginning[name])
    # The Trainer's own mean omits the steps before a resume; its log does not.
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    measures = {
        "steps": trainer.state.global_step,
        "train_rows": len(train),
        "train_loss": sum(losses) / len(losses),
        "train_s": output.metrics["train_runtime"],
        "resumed_from_step": step_of(checkpoint) if checkpoint else 0,
        "processes": processes.count(),
        "batch_size": batch,
    }
    if validation:
        measures |= _best(validation, trainer.state)
    return measures, trainer.accelerator.get_state_dict(trainer.model)


def _best(validation: Validation, state: TrainerState) -> dict:
    """The step of the checkpoint that is kept, and its figures."""
    step, kept = state.best_global_step, _best_figures(state)
    found = {"validation_rows": len(validation.rows), "validation_measure": validation.measure, "best_step": step}
    found[f"best_validation_{validation.measure}"] = kept[validation.measure]
    if validation.clips:
        found |= {"validation_clips": len(validation.clips), "validation_at_best_step": kept}
    if validation.wer_regression_max is not None:
        found |= {"base_wer": validation.clips.base_wer, "wer_regression_max": validation.wer_regression_max}
        found["within_wer_regression_max"] = validation.passes(kept)
    return found


def _best_figures(state: TrainerState) -> dict[str, float]:
    """The figures of the best checkpoint so far; {} before the first."""
    if state.best_global_step is None:
        return {}
    return _figures(next(log for log in state.log_history if log["step"] == state.best_global_step and "eval_loss" in log))


def _figures(log: dict[str, float]) -> dict[str, float]:
    """{"eval_loss": 0.1, "eval_wer": 0.2, "eval_runtime": 3.0} -> {"loss": 0.1, "wer": 0.2}"""
    return {name: log[f"eval_{name}"] for name in FIGURES if f"eval_{name}" in log}


def micro_batches(config: Train, largest: int) -> tuple[int, int]:
    """(batch size, accumulation steps) of each process, so that together they make the config's optimizer
    step: 2 × 8 on two processes is 2 × 4 on each. Raises UsageError when the rows cannot be shared."""
    rows = config.batch_size * config.gradient_accumulation
    if rows % processes.count():
        raise UsageError(
            f"an optimizer step has {config.batch_size} × {config.gradient_accumulation} rows, which {processes.count()} "
            "processes cannot share",
            where="train",
            fix=f"start a number of processes that divides {rows}, or change batch_size or gradient_accumulation",
        )
    own = rows // processes.count()
    batch = max(size for size in range(1, min(largest, own) + 1) if own % size == 0)
    return batch, own // batch


def _checkpoint_to_resume(folder: Path) -> Path | None:
    checkpoint, faults = last_whole_checkpoint(folder)
    for path, fault in faults.items():
        if processes.is_first():
            instead = f"resuming from {checkpoint.name}" if checkpoint else "training starts again"
            print(f"skipped {path}: {fault}; {instead}", file=sys.stderr, flush=True)
    return checkpoint


def _remedy(config: Train) -> str:
    return f"lower train.learning_rate (now {config.learning_rate:g}), and start again with --overwrite"


def _arguments(
    device: torch.device, config: Train, dtype: str, folder: Path, validation: Validation | None, batch: int, accumulation: int
) -> TrainingArguments:
    arguments = TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=config.epochs,
        per_device_train_batch_size=batch,
        per_device_eval_batch_size=batch,
        gradient_accumulation_steps=accumulation,
        optim={"adamw": "adamw_torch_fused", "adamw_8bit": "adamw_bnb_8bit"}[config.optimizer],
        learning_rate=config.learning_rate,
        lr_scheduler_type=config.schedule,
        warmup_steps=config.warmup_steps,
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        eval_strategy="steps" if validation else "no",
        eval_steps=config.evaluate_every_steps,
        save_strategy="steps",
        save_steps=config.evaluate_every_steps,
        save_total_limit=None,  # see `_Trainer._save_checkpoint`
        load_best_model_at_end=validation is not None,
        metric_for_best_model=f"eval_{validation.measure}" if validation else None,
        greater_is_better=validation.higher_is_better if validation else None,
        prediction_loss_only=True,  # or evaluation gathers N × T × 131,072 logits
        remove_unused_columns=False,  # or the mel is dropped
        label_names=["labels"],
        logging_steps=1,
        logging_nan_inf_filter=False,  # or a NaN loss is logged as the loss of earlier steps
        bf16=dtype == "bfloat16",
        neftune_noise_alpha=config.neftune_alpha,
        use_cpu=device.type == "cpu",
        ddp_find_unused_parameters=False,  # every trained weight is used in every step
        seed=config.seed,
        report_to=[],
        disable_tqdm=True,
        dataloader_pin_memory=device.type == "cuda",
    )
    if device.type == "cuda":
        if arguments.device != device:
            raise UsageError(
                f"training runs on {arguments.device}, not on {device}",
                where="model.device",
                fix="set it to auto, and choose the GPU with CUDA_VISIBLE_DEVICES",
            )
        arguments._n_gpu = 1  # one GPU per process: if it saw more, Trainer would use all of them through DataParallel
    return arguments


class _Trainer(Trainer):
    """Transformers' Trainer with the order of `StepSampler`, and with a validation loss that is the mean over all
    learned tokens (Transformers takes the mean over batches, which changes with the batch size)."""

    weights: np.ndarray | None = None  # of the training rows
    keep_checkpoints: int
    remedy: str  # advice in case of weights that are not finite
    validation: Validation | None = None

    def _save_checkpoint(self, model, trial) -> None:
        """Weights that are not finite are not saved, and an old checkpoint is removed only when the new one is complete
        (Transformers removes it first)."""
        require_finite_weights(model, self.state.global_step, self.remedy)
        folder = Path(self.args.output_dir)
        checkpoint = folder / f"checkpoint-{self.state.global_step}"
        if self.is_fsdp_enabled:  # a process that did not find it would not load the best one back, and the others would wait
            checkpoint.mkdir(parents=True, exist_ok=True)
        with save_errors(checkpoint):
            super()._save_checkpoint(model, trial)
        processes.wait()
        if self.args.should_save:
            rotate_checkpoints(str(folder), self.keep_checkpoints, self.state.best_model_checkpoint, use_mtime=True)

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        """Of a full fine-tune, the trained weights under the model's own names. Transformers would write the published names, and
        then resume with none of them: it only warns. Sharded weights have files of their own."""
        if isinstance(self.model, PeftModel):
            super()._save(output_dir, state_dict)
        elif self.args.should_save and not self.is_fsdp_enabled:
            Path(output_dir).mkdir(parents=True, exist_ok=True)
            trained = {name: each.detach() for name, each in self.model.named_parameters() if each.requires_grad}
            save_file(trained, Path(output_dir) / "model.safetensors")

    def _issue_warnings_after_load(self, load_result) -> None:
        """A checkpoint has every trained weight, and no other."""
        trained = {name for name, each in self.model.named_parameters() if each.requires_grad}
        assert not load_result.unexpected_keys and not trained & {*load_result.missing_keys}, load_result

    def _get_train_sampler(self, train_dataset=None) -> StepSampler:
        rows, arguments = self.train_dataset.rows, self.args
        rows_per_step = arguments.train_batch_size * arguments.gradient_accumulation_steps * arguments.world_size
        extra = len(self.train_dataset) - len(rows)
        order = StepSampler(rows.needed_tokens, rows_per_step, arguments.seed, self.weights, rows.set_epoch, extra)
        self.train_dataset.sampler = order
        return order

    def _get_num_items_in_batch(self, batch_samples: list, device: torch.device):
        """The sum of the label weights of an optimizer step, on all processes."""
        if not batch_samples or "label_weights" not in batch_samples[0]:
            return super()._get_num_items_in_batch(batch_samples, device)
        total = sum(batch["label_weights"].sum() for batch in batch_samples).to(device)
        return self.accelerator.gather(total).sum() if self.args.world_size > 1 else total

    def _determine_best_metric(self, metrics: dict[str, float], trial) -> bool:
        """By `Validation.rank`; Transformers compares one figure alone."""
        found, best = _figures(metrics), _best_figures(self.state)
        if best and self.validation.rank(found) <= self.validation.rank(best):
            return False
        self.state.best_metric, self.state.best_global_step = found[self.validation.measure], self.state.global_step
        return True

    def evaluation_loop(self, *arguments, **named):
        """With the figures of decoding beside the loss, so that they are logged and compared with it."""
        output = super().evaluation_loop(*arguments, **named)
        if self.validation.clips:
            output.metrics.update({f"eval_{name}": value for name, value in self.validation.clips.measure().items()})
        return output

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        inputs = self._prepare_inputs(inputs)
        # The evaluation loop averages over rows, so each batch is divided by its rows' share of all tokens.
        share = len(inputs["labels"]) * self.eval_dataset.rows.label_weight / len(self.eval_dataset)
        with torch.no_grad(), self.compute_loss_context_manager():
            loss = model(**inputs, num_items_in_batch=share)["loss"]
        return loss.detach(), None, None


class _Watcher(TrainerCallback):
    """Progress, tracking, an evaluation and a checkpoint at the very end, and an error as soon as a number is not finite."""

    def __init__(self, tracker: Tracker, steps: int, remedy: str):
        self._tracker, self._bar, self._remedy = tracker, Progress("training", steps, "steps"), remedy
        self._note = ""

    def on_train_begin(self, args, state, control, **_):
        self._bar.skip(state.global_step)

    def on_step_end(self, args, state, control, **_):
        self._bar.advance(1, self._note)
        if state.global_step >= state.max_steps:
            control.should_evaluate = args.eval_strategy != "no"
            control.should_save = True
        return control

    def on_log(self, args, state, control, logs=None, **_):
        logs = {name: value for name, value in (logs or {}).items() if isinstance(value, int | float)}
        self._require_finite(logs, state)
        if "loss" in logs:
            self._note = f"loss {logs['loss']:.3f}"
        if "eval_loss" in logs:
            self._note = f"validation {shown(_figures(logs))}"
        self._tracker.log({f"train/{name}": value for name, value in logs.items()}, step=state.global_step)

    def _require_finite(self, logs: dict, state) -> None:
        """The Trainer logs each step's loss and gradient norm, the same in all processes, before it saves anything."""
        names = {"loss": "the loss", "grad_norm": "the gradient", "eval_loss": "the validation loss"}
        for name in names.keys() & logs.keys():
            if not math.isfinite(logs[name]):
                finite = [entry["loss"] for entry in state.log_history if math.isfinite(entry.get("loss", math.nan))]
                before = f"the last finite loss was {finite[-1]:.4g}" if finite else "no loss was finite before"
                raise EvoxtralError(f"at step {state.global_step} {names[name]} is {logs[name]}; {before}", fix=self._remedy)

    def close(self) -> None:
        self._bar.close()
