"""The model side of a family: a loaded model, run in two halves, the audio path and the language model."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from copy import copy

import torch
from transformers import Cache, PreTrainedModel


class Network(ABC):
    """`model`: the stock class or a subclass that reads the same checkpoints, bare or inside a PEFT wrapper. `eos_id` and
    `pad_id`: the tokenizer's; None where nothing is decoded or collated."""

    def __init__(self, model, eos_id: int | None = None, pad_id: int | None = None):
        self.model, self.eos_id, self.pad_id = model, eos_id, pad_id

    def around(self, model) -> "Network":
        """The same for `model`: this one with an adapter, or without."""
        network = copy(self)
        network.model = model
        return network

    @property
    def stock(self) -> PreTrainedModel:
        """The model inside the PEFT wrapper; its linear layers then carry the adapter."""
        return self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model

    @property
    def dtype(self) -> torch.dtype:
        return self.stock.dtype

    @property
    def device(self) -> torch.device:
        """Where the language model is."""
        return self.stock.get_input_embeddings().weight.device

    @property
    def text_config(self):
        """Sizes of the language model."""
        return self.stock.config.text_config

    @property
    @abstractmethod
    def language_parts(self) -> Sequence[torch.nn.Module]:
        """All but the audio path."""

    @property
    @abstractmethod
    def audio_parts(self) -> Sequence[torch.nn.Module]:
        """The audio tower and the projector."""

    def place_language_model(self, device: torch.device) -> None:
        """With an audio cache a GPU never holds both halves."""
        for part in self.language_parts:
            part.to(device)

    def place_audio_path(self, device: torch.device) -> None:
        for part in self.audio_parts:
            part.to(device)

    @abstractmethod
    def drop_audio_path(self) -> None:
        """Free the audio path once its output is cached: `Trainer` moves all that is there."""

    @abstractmethod
    def checkpoint_language_model(self) -> None:
        """Gradient checkpointing on the language model alone, after wrapping with an adapter."""

    @abstractmethod
    def audio_embeddings(self, mel: torch.Tensor) -> torch.Tensor:
        """mel [B, 128, frames] -> what the language model hears at each position [B, T, hidden]."""

    @abstractmethod
    def hidden(
        self, ids: torch.Tensor, audio: torch.Tensor, cache: Cache | None = None, position_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:  # fmt: skip
        """ids [B, T] and their audio [B, T, hidden] -> last hidden states [B, T, hidden]; `cache` is extended.

        `position_ids` [B, T] and `attention_mask` [B, 1, T, keys] (bool) are for rows at positions of their own; by default
        all rows continue where the cache ends.
        """

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """[..., hidden] -> [..., vocabulary]"""
        return self.stock.lm_head(hidden)

    @abstractmethod
    def collate(self, rows: Sequence[dict[str, torch.Tensor]]) -> dict:
        """Training rows -> one batch, padded on the right, with the names that the model's forward takes.

        Each row has `input_ids` [T], `labels` [T], either `input_features` [128, frames] or `audio_embeds` [T, hidden], and
        optionally `label_weights` [T].
        """

    def sizes(self) -> dict[str, int]:
        """Parameters: all of them, and those that are trained."""
        parameters = list(self.model.parameters())
        return {
            "parameters": sum(parameter.numel() for parameter in parameters),
            "trainable_parameters": sum(parameter.numel() for parameter in parameters if parameter.requires_grad),
        }
