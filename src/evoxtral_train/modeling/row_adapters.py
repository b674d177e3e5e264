"""Several adapters on one set of weights: each row of a batch uses its own adapter, or none.

    row 0   base         W x
    row 1   adapter 1    W x + s₁ B₁ A₁ x
    row 2   adapter 2    W x + s₂ B₂ A₂ x

The A matrices of all adapters lie side by side, and so do the B matrices. One product computes every A x; a mask then keeps the
columns of the row's own adapter, times its scale. A row of the base adds exact zeros: its output does not change.
"""

from collections.abc import Sequence

import torch
from peft import PeftModel
from peft.tuners.lora import Linear as LoraLinear
from peft.tuners.lora import LoraLayer
from torch import nn
from torch.nn import functional

from ..errors import UsageError
from ..families.base import Network
from .adapters import Adapter, load_adapter, trains_audio_path

_PEFT_NAME = "default"


class RowAdapters:
    """Adapters on a network's linear layers. Adapter number k is the k-th of `adapters`; 0 is the base.

    It changes `network` in place. Until `use` is called, every row is the base's. Raises UsageError for an adapter that does not
    fit the base, or is more than LoRA on linear layers of the language model.
    """

    def __init__(self, network: Network, adapters: Sequence[Adapter]):
        parts: dict[str, list[_Part]] = {}
        for number, adapter in enumerate(adapters, start=1):
            assert adapter.method == "lora", "a full model shares no weights with other rows"
            wrapped = load_adapter(network, adapter)
            _require_plain_lora(wrapped.model, adapter)
            for name, layer in _lora_layers(wrapped.model):
                parts.setdefault(name, []).append(_Part(layer, number))
            wrapped.model.unload()
        self._layers = []
        for name, of_layer in parts.items():
            owner, _, attribute = name.rpartition(".")
            owner = network.stock.get_submodule(owner)
            layer = _RowLora(getattr(owner, attribute), of_layer)
            setattr(owner, attribute, layer)
            self._layers.append(layer)

    def use(self, rows: torch.Tensor) -> None:
        """`rows` [B] int: the adapter of each row of the next forward passes."""
        masks: dict[tuple, torch.Tensor] = {}  # most layers have the same
        for layer in self._layers:
            if layer.columns not in masks:
                masks[layer.columns] = (rows[:, None] == layer.owner) * layer.scale
            layer.mask = masks[layer.columns][:, None]


class _Part:
    """One adapter's share of a layer."""

    def __init__(self, layer: LoraLayer, number: int):
        self.a, self.b = layer.lora_A[_PEFT_NAME].weight.detach(), layer.lora_B[_PEFT_NAME].weight.detach()
        self.columns = ((number, float(layer.scaling[_PEFT_NAME])),) * len(self.a)


class _RowLora(nn.Module):
    """A linear layer with the parts of several adapters. `mask` [B, 1, ranks] says which columns a row uses."""

    def __init__(self, base: nn.Linear, parts: Sequence[_Part]):
        super().__init__()
        self.base, self.columns, self.mask = base, sum((part.columns for part in parts), ()), None
        owners, scales = zip(*self.columns, strict=True)
        tensors = {
            "a": torch.cat([part.a for part in parts]),  # [ranks, in]
            "b": torch.cat([part.b for part in parts], dim=1),  # [out, ranks]
            "owner": torch.tensor(owners),
            "scale": torch.tensor(scales, dtype=parts[0].a.dtype),
        }
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor, persistent=False)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """[B, T, in] -> [B, T, out]"""
        output = self.base(hidden)
        if self.mask is None:
            return output
        added = functional.linear(functional.linear(hidden.to(self.a.dtype), self.a) * self.mask, self.b)
        return (output + added).to(output.dtype)


def _lora_layers(model: PeftModel) -> list[tuple[str, LoraLayer]]:
    """(name in the stock model, layer)"""
    return [(name, layer) for name, layer in model.get_base_model().named_modules() if isinstance(layer, LoraLayer)]


def _require_plain_lora(model: PeftModel, adapter: Adapter) -> None:
    config, problem = model.peft_config[_PEFT_NAME], None
    if trains_audio_path(model):
        problem = "changes the audio path, so it cannot share the base's audio"
    elif config.use_dora or config.bias != "none" or getattr(config, "lora_bias", False) or config.modules_to_save:
        problem = "is more than plain LoRA (use_dora, bias, lora_bias or modules_to_save)"
    elif any(type(layer) is not LoraLinear for _, layer in _lora_layers(model)):
        problem = "changes layers that are not linear"
    if problem:
        fix = "merge it into the base (`evoxtral export` with format: transformers), and use the result as base"
        raise UsageError(f"this adapter {problem}", where=str(adapter.folder), fix=fix)
