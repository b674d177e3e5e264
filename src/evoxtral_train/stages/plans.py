"""The facts of a dry run: sizes, from the model's shape alone, and row counts if they are known.

Works without weights, GPU or network. If an input does not exist yet, the plan names it and the command that makes it. If an
input exists but leaves nothing to do, the plan fails.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from ..config.evaluation import CalibrateConfig, EvalConfig
from ..config.sections import Model
from ..config.training import Lora, RaftConfig, SftConfig, Train
from ..dataset.reader import PackedSplit, has_split, require_packed
from ..errors import UsageError
from ..families.base import Network
from ..families.checkpoint import assumption, family_for
from ..modeling.adapters import adapter_bytes, adapter_lora, add_lora, find_adapter, unfreeze
from ..modeling.bases import describe_cache, describe_model, require_method
from ..raft.curation import clips_kept
from ..run_folders import is_complete
from ..training.trainer import optimizer_steps
from .raft.scoring import clips_by_profile
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
    network = _with_training(network, config, train, lora)
    if train.method == "full":
        facts |= _full_facts(config, train, network)
    elif lora is not None:
        facts["trainable parameters"] = f"{network.sizes()['trainable_parameters']:,}"
        facts["adapter size"] = f"{gigabytes(adapter_bytes(network.model))} on disk"
    return facts


def trained_network(config: Model, train: Train, lora: Lora | None) -> Network:
    """The model's shape, with what is trained."""
    return _with_training(describe_model(config)[0], config, train, lora)


def _with_training(network: Network, config: Model, train: Train, lora: Lora | None) -> Network:
    network.model.requires_grad_(False)
    if train.method == "full":
        return unfreeze(network, train.train_audio_tower)
    return network if lora is None else add_lora(network, lora, config)


def plan_machine(check: Callable[[], None]) -> dict:
    """What `check` says of this machine. A plan for another machine is still a plan: no error."""
    try:
        check()
    except UsageError as error:
        return {"cannot run here": error}
    return {}


def plan_cache(config: SftConfig | RaftConfig, network: Network, splits: list[str], new_tokens: int = 0) -> dict:
    """The audio cache of each split that is packed. `network`: with what is trained. Raises UsageError as the run does."""
    if not is_complete(config.dataset):
        return {}
    found = [PackedSplit(config.dataset, name) for name in splits if has_split(config.dataset, name)]
    return {f"audio cache, {split.split}": describe_cache(config, network, split, new_tokens) for split in found}


def plan_decoded_audio(config: EvalConfig | CalibrateConfig, adapters: Sequence[Path | None]) -> dict:
    """The audio cache of the split that the base (None) and adapters decode. Raises UsageError as the run does."""
    if not (adapters and is_complete(config.dataset)):
        return {}
    split, model = PackedSplit(config.dataset, config.split), config.model
    new_tokens = config.decode.max_new_tokens or family_for(model.base, model.revision, model.family)[0].default_new_tokens
    caches = [describe_cache(config, _decoding_network(model, path), split, new_tokens) for path in adapters]
    return {f"audio cache, {split.split}": "; ".join(dict.fromkeys(caches))}


def _decoding_network(config: Model, path: Path | None) -> Network:
    """The model's shape, with an adapter if there is one yet."""
    network = describe_model(config)[0]
    network.model.requires_grad_(False)
    try:
        adapter = find_adapter(path) if path else None
    except UsageError:
        return network
    if adapter and adapter.method == "lora":
        return add_lora(network, adapter_lora(adapter), config)
    network.own_audio_path = adapter is not None
    return network


def _model_facts(config: Model, parameters: int, source: str) -> dict:
    said = assumption(config.base, config.revision, config.family, "model.family")
    return {
        "model": f"{config.base}, shape from {source}",
        **({"family": said} if said else {}),
        "parameters": f"{parameters:,} frozen",
        "weights": f"{gigabytes(parameters * getattr(torch, config.dtype).itemsize)} in {config.dtype}",
    }


def _full_facts(config: Model, train: Train, network: Network) -> dict:
    """Float32 weights and their gradients take 4 bytes each, and the states what the optimizer says. One process keeps the
    weights that it began with, to begin again with a smaller batch."""
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
        "main memory": f"{gigabytes(4 * trained)} for a copy of the trained weights, if there is one process",
        "checkpoint size": f"{gigabytes(4 * trained + states)} on disk, for each kept one",
        "model size": f"{gigabytes(sizes['parameters'] * stored_bytes)} on disk",
    }


def plan_decoding(config: Model, batch_tokens: int, dtype: str | None = None) -> dict:
    """Memory of the rows decoded together: keys, values and one audio embedding per token. `dtype`: the language model's, if it
    is not the config's."""
    text = describe_model(config)[0].text_config
    numbers = 2 * text.num_hidden_layers * text.num_key_value_heads * text.head_dim + text.hidden_size
    size = gigabytes(batch_tokens * numbers * getattr(torch, dtype or config.dtype).itemsize)
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
    network = trained_network(config.model, config.train, lora)
    network.own_audio_path = adapter.method == "full"
    return facts | plan_cache(config, network, [config.split], config.generate.max_new_tokens or 0)


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
    split = PackedSplit(config.dataset, config.split)
    kept = sum(clips_kept(count, curate) for count in clips_by_profile(config.score, split).values())
    if not kept:
        what = f"none of the {clips:,} clips would be kept"
        raise UsageError(what, where="curate.drop_lowest_share", fix="drop a smaller share")
    rows = kept + min(round(curate.reference_replay * kept), int(split.labelled.sum()))
    return f"unknown before scoring: at most {rows}" if curate.skip_without_spread else rows
