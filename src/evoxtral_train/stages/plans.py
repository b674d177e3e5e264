"""The facts of a dry run: sizes, from the model's shape alone, and row counts if they are known.

Works without weights, GPU or network. If an input does not exist yet, the plan names it and the command that makes it. If an
input exists but leaves nothing to do, the plan fails.
"""

from pathlib import Path

import torch

from ..config.sections import Model
from ..config.training import Lora, RaftConfig, SftConfig, Train
from ..dataset.reader import PackedSplit, has_split, require_packed
from ..errors import UsageError
from ..families.base import Network
from ..modeling.adapters import adapter_bytes, adapter_lora, add_lora, find_adapter, unfreeze
from ..modeling.bases import describe_cache, describe_model, require_method
from ..raft.curation import clips_kept
from ..run_folders import is_complete
from ..training.trainer import optimizer_steps
from .report import gigabytes

_STATE_BYTES = {"adamw": 8, "adamw_8bit": 2}
"""An optimizer's two states of a trained weight."""


def plan_model(config: Model) -> dict:
    """Parameters and weights."""
    network, source = describe_model(config)
    return _model_facts(config, network.sizes()["parameters"], source)


def plan_training(config: Model, train: Train, lora: Lora | None) -> dict:
    """`plan_model`, and what training adds to it. `lora`: None if it is not known yet; a full fine-tune has none."""
    network, source = describe_model(config)
    facts = _model_facts(config, network.sizes()["parameters"], source)
    if train.method == "full":
        facts |= _full_facts(config, train, unfreeze(network, train.train_audio_tower))
    elif lora is not None:
        network.model.requires_grad_(False)
        adapted = add_lora(network, lora, config)
        facts["trainable parameters"] = f"{adapted.sizes()['trainable_parameters']:,}"
        facts["adapter size"] = f"{gigabytes(adapter_bytes(adapted.model))} on disk"
    return facts


def plan_cache(config: SftConfig | RaftConfig, lora: Lora | None, splits: list[str]) -> dict:
    """The audio cache of each split that is packed."""
    if not is_complete(config.dataset):
        return {}
    network, _ = describe_model(config.model)
    network.model.requires_grad_(False)
    if config.train.method == "full":
        network = unfreeze(network, config.train.train_audio_tower)
    elif lora is not None:
        network = add_lora(network, lora, config.model)
    found = [name for name in splits if has_split(config.dataset, name)]
    return {f"audio cache, {name}": describe_cache(config, network, PackedSplit(config.dataset, name)) for name in found}


def _model_facts(config: Model, parameters: int, source: str) -> dict:
    return {
        "model": f"{config.base}, shape from {source}",
        "parameters": f"{parameters:,} frozen",
        "weights": f"{gigabytes(parameters * getattr(torch, config.dtype).itemsize)} in {config.dtype}",
    }


def _full_facts(config: Model, train: Train, network: Network) -> dict:
    """Float32 weights and their gradients take 4 bytes each, and the states what the optimizer says."""
    sizes, stored_bytes = network.sizes(), getattr(torch, config.dtype).itemsize
    trained = sizes["trainable_parameters"]
    frozen = sizes["parameters"] - trained
    states = trained * _STATE_BYTES[train.optimizer]
    memory = frozen * stored_bytes + 8 * trained + states
    return {
        "parameters": f"{sizes['parameters']:,}, {frozen:,} of them frozen",
        "weights": f"{gigabytes(frozen * stored_bytes + 4 * trained)}: trained ones in float32, frozen ones in {config.dtype}",
        "trainable parameters": f"{trained:,}",
        "gradients": f"{gigabytes(4 * trained)} in float32",
        "optimizer states": f"{gigabytes(states)} ({train.optimizer})",
        "memory": f"{gigabytes(memory)} in addition to activations, on all processes together with FSDP",
        "checkpoint size": f"{gigabytes(4 * trained + states)} on disk, for each kept one",
        "model size": f"{gigabytes(sizes['parameters'] * stored_bytes)} on disk",
    }


def plan_decoding(config: Model, batch_tokens: int) -> dict:
    """Memory of the rows decoded together: keys, values and one audio embedding per token."""
    text = describe_model(config)[0].text_config
    numbers = 2 * text.num_hidden_layers * text.num_key_value_heads * text.head_dim + text.hidden_size
    size = gigabytes(batch_tokens * numbers * getattr(torch, config.dtype).itemsize)
    return {"decoded together": f"{batch_tokens:,} tokens, {size} in addition to the weights"}


def plan_start(config: RaftConfig) -> dict:
    """The model, what RAFT starts from, and what training adds. Raises UsageError when the two do not fit together."""
    try:
        adapter = find_adapter(config.adapter)
    except UsageError:
        return plan_training(config.model, config.train, None) | plan_adapter(config.adapter)
    require_method(adapter, config)
    lora = adapter_lora(adapter) if adapter.method == "lora" else None
    facts = plan_training(config.model, config.train, lora) | plan_adapter(config.adapter)
    return facts | plan_cache(config, lora, [config.split])


def plan_adapter(path: Path) -> dict:
    """Whether the adapter exists, and its settings."""
    try:
        adapter = find_adapter(path)
        if adapter.method == "full":
            return {"adapter": f"{path} (a full model)"}
        lora = adapter_lora(adapter)
    except UsageError as error:
        return {"adapter": f"does not exist yet: {error}"}
    return {"adapter": f"{path} (r {lora.r}, alpha {lora.alpha:g})"}


def count_packed_rows(dataset: Path, split: str) -> int | str:
    """The number of rows, or why it is not known yet. Raises UsageError if the split exists but is empty."""
    try:
        require_packed(dataset)
    except UsageError as error:
        return f"unknown: {error}"
    return len(PackedSplit(dataset, split))


def plan_steps(rows: int | str, train: Train) -> dict:
    batch = f"{train.epochs:g} epochs at batch {train.batch_size} × {train.gradient_accumulation}"
    steps = f"{optimizer_steps(rows, train)} ({batch})" if isinstance(rows, int) else f"unknown ({batch})"
    return {"rows": rows, "steps": steps}


def plan_labelled(dataset: Path, split: str) -> str:
    """The clips of a split that have a reference, or why they are not known yet. Raises UsageError if there are none."""
    try:
        require_packed(dataset)
    except UsageError as error:
        return f"unknown: {error}"
    return PackedSplit(dataset, split).describe_labelled()


def plan_curated(config: RaftConfig) -> int | str:
    """How many rows curation will keep, including replayed references. Raises UsageError if there are none."""
    clips, curate = count_packed_rows(config.dataset, config.split), config.curate
    if not isinstance(clips, int):
        return clips
    labelled = int(PackedSplit(config.dataset, config.split).labelled.sum())
    profiles = [clips] if config.score.profile == "verifier" else [labelled, clips - labelled]  # clips scored by each
    kept = sum(clips_kept(count, curate) for count in profiles if count)
    if not kept:
        what = f"none of the {clips:,} clips would be kept"
        raise UsageError(what, where="curate.drop_lowest_share", fix="drop a smaller share")
    rows = kept + min(round(curate.reference_replay * kept), labelled)
    return f"unknown before scoring: at most {rows}" if curate.skip_without_spread else rows
