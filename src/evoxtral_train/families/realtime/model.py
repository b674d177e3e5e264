"""Voxtral Realtime's model, in two halves that run one after the other.

The stock forward adds the projected audio to the token embeddings and runs the language model on the sum. `audio_embeddings` and
`hidden` are those two steps, so that a clip is encoded once; a test checks that they equal the stock forward.
"""

from __future__ import annotations  # `Realtime` imports this module

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import Cache, VoxtralRealtimeForConditionalGeneration

from ...units import FRAMES_PER_TOKEN, SILENCE_LOG_MEL
from ..base import IGNORED, Network
from ..loss import loss_of
from .clock import Clock
from .streaming import RealtimeStreamEncoder

if TYPE_CHECKING:
    from .family import Realtime


class CachedAudioVoxtralRealtimeForConditionalGeneration(VoxtralRealtimeForConditionalGeneration):
    """The stock class with two more inputs, each in place of `input_features`: the projected audio `audio_embeds` [B, T, hidden],
    or `audio_states` [B, T, width], which the projector still has to project.

    The stock forward refuses to run without audio. Given one of the two, this one runs only the language model, and `lm_head`
    only at labels: the same loss. `label_weights` [B, T]: the weight of each label in the loss. With none of them it is the
    stock forward. Weights and names are the same, so an adapter trained here loads into the stock class.
    """

    def forward(
        self, input_ids=None, audio_embeds=None, audio_states=None, labels=None, num_delay_tokens=None, label_weights=None,
        **kwargs,
    ):  # fmt: skip
        if audio_embeds is None and audio_states is None and label_weights is None:
            return super().forward(input_ids=input_ids, labels=labels, num_delay_tokens=num_delay_tokens, **kwargs)
        network = RealtimeNetwork(self, num_delay_tokens)
        if audio_states is not None:
            audio_embeds = network.project(audio_states)
        elif audio_embeds is None:
            audio_embeds = network.audio_embeddings(kwargs["input_features"], input_ids.shape[1])
        hidden = network.hidden(input_ids, audio_embeds)
        return loss_of(self, hidden, labels, label_weights, kwargs.get("num_items_in_batch"))


class RealtimeNetwork(Network):
    """`delay_tokens`: how long the model waits between hearing and writing; it conditions every layer."""

    def __init__(self, model, delay_tokens: int, eos_id: int | None = None, pad_id: int | None = None):
        super().__init__(model, eos_id, pad_id)
        self._delay_tokens = delay_tokens

    @property
    def language_parts(self) -> Sequence[torch.nn.Module]:
        inner = self.stock
        return inner.model.language_model, inner.model.time_embedding, inner.lm_head

    def checkpoint_language_model(self) -> None:
        """Non-reentrant. Enabled on the whole model, it would crash: its hook makes the embeddings a leaf, which the stock
        forward then adds to in place."""
        language_model = self.stock.model.language_model
        language_model.activation_checkpointing_enable({"use_reentrant": False})
        language_model.disable_input_require_grads()

    @property
    def state_width(self) -> int:
        return self.stock.config.audio_config.hidden_size * self.stock.config.downsample_factor

    def audio_states(self, mels: Sequence[torch.Tensor], tokens: int) -> torch.Tensor:
        """Causal: the first t states do not depend on later frames."""
        inner = self.stock.model
        mel = _padded(mels, tokens * FRAMES_PER_TOKEN)
        weight = inner.audio_tower.embedder.conv1.weight
        hidden = inner.audio_tower(mel.to(weight.device, weight.dtype), return_dict=True).last_hidden_state
        return hidden.reshape(len(hidden), tokens, self.state_width)

    def project(self, states: torch.Tensor) -> torch.Tensor:
        projector = self.stock.model.multi_modal_projector
        return projector(states.to(projector.linear_1.weight.dtype))

    def streams(self, family: Realtime, slots: int, longest_tokens: int) -> RealtimeStreamEncoder:
        extractor, left_pad_tokens = family.processor.feature_extractor, family.clock.left_pad_tokens
        return RealtimeStreamEncoder(self, extractor, left_pad_tokens, slots, longest_tokens)

    def hidden(
        self, ids: torch.Tensor, audio: torch.Tensor, cache: Cache | None = None, position_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:  # fmt: skip
        inner = self.stock
        embeds = inner.get_input_embeddings()(ids) + audio
        delay = torch.full((1,), self._delay_tokens, device=embeds.device, dtype=embeds.dtype)
        outputs = inner.model.language_model(
            inputs_embeds=embeds,
            past_key_values=cache,
            use_cache=cache is not None,
            position_ids=position_ids,
            attention_mask=attention_mask,
            t_cond=inner.model.time_embedding(delay)[None],
        )
        return outputs.last_hidden_state

    def collate(self, rows: Sequence[dict[str, torch.Tensor]]) -> dict:
        """Ids are padded with `<pad>`, labels with -100, mel with log-mel silence. No attention mask is needed: padding comes
        after everything that is scored.

            rows of 5 and 3 tokens   ids     1 P P 70 2      labels  . . . 70 2      mel [128, 40]
                                             1 P 2           labels  . . 2           mel [128, 24]
            the batch                ids     1 P P 70 2      labels  . . . 70 2      mel [2, 128, 40]
                                             1 P 2 11 11             . . 2 . .       (silence on the right)
        """
        batch = {
            "input_ids": pad_sequence([row["input_ids"] for row in rows], batch_first=True, padding_value=self.pad_id),
            "labels": pad_sequence([row["labels"] for row in rows], batch_first=True, padding_value=IGNORED),
            "num_delay_tokens": self._delay_tokens,  # a plain int: a 0-d tensor breaks `generate`
        }
        if "label_weights" in rows[0]:
            batch["label_weights"] = pad_sequence([row["label_weights"] for row in rows], batch_first=True)
        for name in ("audio_embeds", "audio_states"):
            if name in rows[0]:
                return batch | {name: pad_sequence([row[name] for row in rows], batch_first=True)}
        for row in rows:
            assert row["input_features"].shape[-1] == len(row["input_ids"]) * FRAMES_PER_TOKEN, "mel and ids run on one clock"
        mels = [row["input_features"] for row in rows]
        return batch | {"input_features": _padded(mels, batch["input_ids"].shape[1] * FRAMES_PER_TOKEN)}


def _padded(mels: Sequence[torch.Tensor], frames: int) -> torch.Tensor:
    """[128, n ≤ frames] each -> [B, 128, frames], silence on the right."""
    batch = torch.full((len(mels), len(mels[0]), frames), SILENCE_LOG_MEL, dtype=mels[0].dtype, device=mels[0].device)
    for row, mel in zip(batch, mels, strict=True):
        row[:, : mel.shape[1]] = mel
    return batch


def network_of(model: VoxtralRealtimeForConditionalGeneration, clock: Clock) -> RealtimeNetwork:
    return RealtimeNetwork(model, clock.delay_tokens, clock.eos_id, clock.pad_id)
