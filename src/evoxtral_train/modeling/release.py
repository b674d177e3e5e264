"""What was trained, in other forms: a whole checkpoint, and an adapter under vLLM's names."""

import json
import re
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from ..errors import UsageError
from ..files import write_atomic
from .adapters import Adapter
from .bases import Base, load_network

_PEFT_LAYER = re.compile(r"^base_model\.model\.model\.language_model\.layers\.(.+)$")


def write_merged(base: Base, dtype: str, adapter: Adapter, file_format: str, folder: Path) -> None:
    """The full model, or the base with the adapter merged in, with the processor's files beside it. `file_format`: transformers |
    mistral.

    Merged in float32, then cast to `dtype`: merged in bfloat16, 1.4 to 4.7% of the argmaxes change
    (random weights of a small shape).
    """
    network = load_network(base, "float32", adapter)
    merged = network.model if adapter.method == "full" else network.model.merge_and_unload()
    _write(base, merged.to(getattr(torch, dtype)), file_format, folder)


def write_full_model(base: Base, dtype: str, weights: dict[str, torch.Tensor], folder: Path) -> None:
    """A full fine-tune as the stock class loads it, in `dtype`. `weights`: all that it trained; the rest is the base's."""
    model = base.family.load(dtype).model
    unknown = model.load_state_dict(weights, strict=False).unexpected_keys
    assert not unknown, f"trained weights that the base lacks: {unknown}"
    _write(base, model, "transformers", folder)


def _write(base: Base, model: torch.nn.Module, file_format: str, folder: Path) -> None:
    if file_format == "mistral":
        base.family.save_mistral(model, folder)
        return
    base.family.save(model, folder)
    config = json.loads((folder / "config.json").read_text("utf-8"))
    config["architectures"] = [base.family.stock_class]  # not the subclass that also takes cached audio: other engines look here
    write_atomic(folder / "config.json", json.dumps(config, indent=2) + "\n")


def write_vllm_names(adapter: Adapter, settings: Path, folder: Path) -> None:
    """The adapter's tensors under the names of vLLM's modules, `language_model.model.layers.…`. `settings`: its
    `adapter_config.json`, in a form that can be published.

    Written only from other projects' code: never loaded in vLLM. Raises UsageError for an adapter outside the language
    model, which vLLM's LoRA does not reach.
    """
    tensors = {}
    for name, tensor in load_file(adapter.folder / "adapter_model.safetensors").items():
        match = _PEFT_LAYER.match(name)
        if not match:
            raise UsageError(
                f"vLLM's LoRA reaches only the language model, but this adapter has {name}",
                where=str(adapter.folder),
                fix="set vllm_names to false, or export merged weights",
            )
        tensors[f"base_model.model.language_model.model.layers.{match.group(1)}"] = tensor
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    config = json.loads(settings.read_text("utf-8"))
    config["target_modules"] = sorted({name.split(".")[-3] for name in tensors})
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n", "utf-8")
