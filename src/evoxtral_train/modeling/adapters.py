"""What is trained, an adapter or the weights themselves: create it, find it, load it, and check that it fits its base.

A full fine-tune is accepted wherever an adapter is: `find_adapter` finds either, and `bases.load_network` loads either.
"""

import json
import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors import SafetensorError, safe_open

from .. import shipped
from ..config.sections import Model
from ..config.training import Lora
from ..errors import UsageError
from ..families.base import Network
from ..families.checkpoint import base_fingerprint, config_file, resolve_base
from ..files import fingerprint_files
from ..plain_text import one_line
from ..runs import read_run, require_complete
from .adapter_record import AdapterRecord
from .weights import non_finite

# peft reads a property of transformers by its old name; users cannot do anything about it.
warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)
warnings.filterwarnings("ignore", message="Found missing adapter keys")  # it is an error here: `_require_all_weights`
# A base in Mistral's layout has no config.json; peft looks there for the vocabulary's size, which no adapter here changes.
warnings.filterwarnings("ignore", message="Could not find a config file in .* vocabulary was not modified")

FOLDERS = {"lora": "adapter", "full": "model"}
"""`train.method` -> the folder of a run with what it trained."""
_FILES = ("adapter_config.json", "adapter_model.safetensors")


@dataclass(frozen=True)
class Adapter:
    """`base`: fingerprint of the base that it was trained on; None if it is not recorded. `method`: as in `train.method`; the
    folder of a full fine-tune holds a whole checkpoint."""

    folder: Path
    fingerprint: str
    base: str | None
    method: Literal["lora", "full"] = "lora"


def find_adapter(path: Path) -> Adapter:
    """An adapter or full model from a run of `sft`, `raft train` or `raft run`, any PEFT folder, or the folder of a full model;
    `data/tiny-tagger` comes with evoxtral.

    Raises UsageError when it does not exist, when its run is not finished, or when its weights are damaged or not finite.
    """
    path = shipped.find(path)
    if (path / "run.json").is_file():
        stage = read_run(path)["stage"]
        stage = stage if stage in ("raft train", "raft run") else "sft"
        require_complete(path, stage, f"evoxtral {stage} …")
        kind = "full" if (path / FOLDERS["full"]).is_dir() else "lora"
        folder, base = path / FOLDERS[kind], read_run(path)["inputs"]["base"]
    else:
        folder, base = path, None
        if record := AdapterRecord.read(path):
            base = record.base
    if not (folder / "adapter_config.json").is_file() and config_file(folder).is_file():
        return _full_model(folder, base)
    missing = [name for name in _FILES if not (folder / name).is_file()]
    if missing == ["adapter_model.safetensors"] and (folder / "adapter_model.bin").is_file():
        what = "its weights are pickled (adapter_model.bin), which can run code: only adapter_model.safetensors is opened"
        raise UsageError(what, where=str(folder), fix="ask its author for safetensors")
    if missing:
        raise UsageError(
            f"no adapter here ({missing[0]} is missing)",
            where=str(path),
            fix="point `adapter` at a run of `evoxtral sft`, or at a folder with a PEFT adapter; "
            "make one with: evoxtral sft …",
        )
    _require_lora(folder / "adapter_config.json")
    _check_weights(folder / "adapter_model.safetensors")
    return Adapter(folder, fingerprint_files(folder / name for name in _FILES), base)


def _full_model(folder: Path, base: str | None) -> Adapter:
    resolve_base(str(folder), None)  # refuses code
    index = folder / "model.safetensors.index.json"
    try:
        names = {*json.loads(index.read_text("utf-8"))["weight_map"].values()} if index.is_file() else set()
        for path in {*folder.glob("*.safetensors"), *(folder / name for name in names)}:
            with safe_open(path, "pt"):  # raises if the file is shorter than its header says
                pass
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        fix = "copy it again, or train it again with --overwrite"
        raise UsageError(f"these weights cannot be read: {error}", where=str(folder), fix=fix) from None
    return Adapter(folder, base_fingerprint(folder), base, "full")


def base_of(adapter: Adapter) -> str | None:
    """The base that its config names: a hub id or a folder; None for a full model."""
    if adapter.method == "full":
        return None
    return json.loads((adapter.folder / "adapter_config.json").read_text("utf-8")).get("base_model_name_or_path")


def _require_lora(path: Path) -> None:
    """Other kinds of adapters may open further files that their config names."""
    try:
        kind = json.loads(path.read_text("utf-8"))["peft_type"]
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        what = f"cannot be read: {type(error).__name__}: {error}"
        raise UsageError(what, where=str(path), fix="use an adapter that PEFT saved") from None
    if kind != "LORA":
        raise UsageError(f"is an adapter of type {kind!r}, not LoRA", where=str(path), fix="use a LoRA adapter")


def _check_weights(path: Path) -> None:
    try:
        with safe_open(path, "pt") as file:
            weights = ((name, file.get_tensor(name)) for name in file.keys())  # noqa: SIM118 - not a dict
            found = non_finite((name, _floating(name, tensor)) for name, tensor in weights)
    except (OSError, SafetensorError, TypeError) as error:
        fix = "copy it again, or train it again with --overwrite"
        raise UsageError(f"these weights cannot be read: {error}", where=str(path), fix=fix) from None
    if found:
        fix = "train it again with a lower train.learning_rate and --overwrite"
        raise UsageError(f"an adapter whose weights are not finite: {found}", where=str(path), fix=fix)


def _floating(name: str, tensor: torch.Tensor) -> torch.Tensor:
    if not tensor.is_floating_point():
        raise TypeError(f"{name} holds {tensor.dtype}, which is not a floating-point type")
    return tensor


def adapter_lora(adapter: Adapter) -> Lora:
    """The LoRA settings that a saved adapter was made with."""
    config = LoraConfig.from_pretrained(adapter.folder)
    modules = config.target_modules
    pattern = modules if isinstance(modules, str) else rf".*({'|'.join(sorted(modules))})"
    return Lora(r=config.r, alpha=config.lora_alpha, dropout=config.lora_dropout, target_modules=pattern)


def check_base(adapter: Adapter, base_fingerprint: str, base: str) -> None:
    """Refuse an adapter that was trained on another base."""
    if adapter.base is not None and adapter.base != base_fingerprint:
        raise UsageError(
            f"this adapter was trained on another base ({adapter.base}), not on {base} ({base_fingerprint})",
            where=str(adapter.folder),
            fix="set model.base to the adapter's own, or train an adapter on this base",
        )


def add_lora(network: Network, lora: Lora, model_config: Model) -> Network:
    """A fresh adapter on the modules that match `lora.target_modules`; everything else stays frozen."""
    config = LoraConfig(
        r=lora.r, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=lora.target_modules, bias="none"
    )
    try:
        wrapped = get_peft_model(network.model, config)
    except (ValueError, re.error) as error:
        fix = "the default trains q, k, v, o of the language model"
        raise UsageError(one_line(error, 200), where="lora.target_modules", fix=fix) from None
    # The base as named in the config, not the folder that it was resolved to.
    wrapped.peft_config["default"].base_model_name_or_path = model_config.base
    wrapped.peft_config["default"].revision = model_config.revision
    return network.around(wrapped)


def trains_audio_path(model: PeftModel) -> bool:
    """Whether a wrapped model has LoRA in its audio tower or projector; if so, it cannot share the base's audio."""
    return any("lora_" in name and "language_model" not in name for name, _ in model.named_parameters())


def unfreeze(network: Network, train_audio_tower: bool) -> Network:
    """For a full fine-tune, the network itself: the language model and the projector are trained, and the audio tower if asked.

    What is trained becomes float32: in bfloat16 most steps of a small learning rate round to nothing."""
    network.model.requires_grad_(True)
    if not train_audio_tower:
        network.audio_parts[0].requires_grad_(False)
    for parameter in network.model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return network


def load_adapter(network: Network, adapter: Adapter, trainable: bool = False) -> Network:
    """Put a saved adapter on the base. Raises UsageError when its shapes or modules do not fit."""
    try:
        wrapped = PeftModel.from_pretrained(network.model, adapter.folder, is_trainable=trainable)
        _require_all_weights(wrapped, adapter)
    except (RuntimeError, ValueError, TypeError, KeyError, AttributeError, re.error) as error:
        raise UsageError(
            f"this adapter does not fit the base: {one_line(error, 200)}",
            where=str(adapter.folder),
            fix="set model.base to the base that it was trained on",
        ) from None
    return network.around(wrapped if trainable else wrapped.eval())


def _require_all_weights(wrapped: PeftModel, adapter: Adapter) -> None:
    """PEFT accepts wrong names: missing weights keep their initial value (the bare base), unknown ones are ignored. Raises
    ValueError in both cases."""
    expected = get_peft_model_state_dict(wrapped, save_embedding_layers=False)
    with safe_open(adapter.folder / "adapter_model.safetensors", "pt") as file:
        found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    missing, unknown = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys())
    if missing or unknown:
        what = f"lacks {missing[0]}" if missing else f"holds {unknown[0]}"
        raise ValueError(f"{len(missing)} of its weights are missing and {len(unknown)} unknown: it {what}")


def adapter_bytes(model: PeftModel) -> int:
    """Size of the saved adapter; LoRA weights are float32."""
    return sum(each.numel() for each in model.parameters() if each.requires_grad) * torch.float32.itemsize
