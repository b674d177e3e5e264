"""The facts of a dry run: sizes, from the model's shape alone, and row counts if they are known.

Works without weights, GPU or network. If an input does not exist yet, the plan names it and the command that makes it. If an
input exists but leaves nothing to do, the plan fails.
"""

from pathlib import Path

import torch

from ..config.sections import Model
from ..config.training import Curate, Lora, Train
from ..dataset.reader import PackedSplit, require_packed
from ..errors import UsageError
from ..modeling.adapters import adapter_bytes, adapter_lora, add_lora, find_adapter
from ..modeling.bases import describe_model
from ..raft.curation import clips_kept
from ..training.trainer import optimizer_steps
from .report import gigabytes


def plan_model(config: Model, lora: Lora | None = None) -> dict:
    """Parameters, weights, and what `lora` adds to them."""
    network, source = describe_model(config)
    frozen = network.sizes()["parameters"]
    facts = {
        "model": f"{config.base}, shape from {source}",
        "parameters": f"{frozen:,} frozen",
        "weights": f"{gigabytes(frozen * getattr(torch, config.dtype).itemsize)} in {config.dtype}",
    }
    if lora is not None:
        network.model.requires_grad_(False)
        adapted = add_lora(network, lora, config)
        facts["trainable parameters"] = f"{adapted.sizes()['trainable_parameters']:,}"
        facts["adapter size"] = f"{gigabytes(adapter_bytes(adapted.model))} on disk"
    return facts


def plan_decoding(config: Model, batch_tokens: int) -> dict:
    """Memory of the rows decoded together: keys, values and one audio embedding per token."""
    text = describe_model(config)[0].text_config
    numbers = 2 * text.num_hidden_layers * text.num_key_value_heads * text.head_dim + text.hidden_size
    size = gigabytes(batch_tokens * numbers * getattr(torch, config.dtype).itemsize)
    return {"decoded together": f"{batch_tokens:,} tokens, {size} in addition to the weights"}


def plan_adapter(path: Path) -> tuple[dict, Lora | None]:
    """The facts of the adapter to start from, and its LoRA settings if it exists."""
    try:
        lora = adapter_lora(find_adapter(path))
    except UsageError as error:
        return {"adapter": f"does not exist yet: {error}"}, None
    return {"adapter": f"{path} (r {lora.r}, alpha {lora.alpha:g})"}, lora


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


def plan_curated(dataset: Path, split: str, curate: Curate) -> int | str:
    """How many rows curation will keep, including replayed references. Raises UsageError if there are none."""
    clips = count_packed_rows(dataset, split)
    if not isinstance(clips, int):
        return clips
    kept = clips_kept(clips, curate)
    if not kept:
        what = f"none of the {clips:,} clips would be kept"
        raise UsageError(what, where="curate.drop_lowest_share", fix="drop a smaller share")
    rows = kept + round(curate.reference_replay * kept)
    return f"unknown before scoring: at most {rows}" if curate.skip_without_spread else rows
