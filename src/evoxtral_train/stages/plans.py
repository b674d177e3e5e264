"""What a dry run can tell before any cost: sizes from the shape alone, rows where they are known.

An input that does not exist yet is named in the plan, with the command that makes it; it does not
stop the plan. One that is there and leaves nothing to do does. Everything here works without weights, GPU or network.
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
    """What the rows that are decoded together hold: keys, values and one audio embedding for each token."""
    text = describe_model(config)[0].text_config
    numbers = 2 * text.num_hidden_layers * text.num_key_value_heads * text.head_dim + text.hidden_size
    held = gigabytes(batch_tokens * numbers * getattr(torch, config.dtype).itemsize)
    return {"decoded together": f"{batch_tokens:,} tokens, {held} beside the weights"}


def plan_adapter(path: Path) -> tuple[dict, Lora | None]:
    """What is known of the adapter to start from, and its LoRA settings when it is there."""
    try:
        lora = adapter_lora(find_adapter(path))
    except UsageError as error:
        return {"adapter": f"not there yet: {error}"}, None
    return {"adapter": f"{path} (r {lora.r}, alpha {lora.alpha:g})"}, lora


def count_rows(dataset: Path, split: str) -> int | str:
    """The number of rows, or why it is not known yet. Raises UsageError when the split is there and has none."""
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
    """How many rows curation will leave, replayed references among them. Raises UsageError when that is none."""
    clips = count_rows(dataset, split)
    if not isinstance(clips, int):
        return clips
    kept = clips_kept(clips, curate)
    if not kept:
        raise UsageError(f"of {clips:,} clips none would be left", where="curate.drop_lowest_share", fix="drop a smaller share")
    rows = kept + round(curate.reference_replay * kept)
    return f"unknown before scoring: at most {rows}" if curate.skip_without_spread else rows
