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
from .clock import Clock
from .streaming import RealtimeStreamEncoder

if TYPE_CHECKING:
    from .family import Realtime


class CachedAudioVoxtralRealtimeForConditionalGeneration(VoxtralRealtimeForConditionalGeneration):
    """The stock class with one more input: `audio_embeds` instead of `input_features`.

    The stock forward refuses to run without audio. Given the projected audio [B, T, hidden], this one runs only the
    language model, and `lm_head` only at labels: the same loss, without T × 131,072 logits. `label_weights` [B, T]: the weight
    of each label in the loss. With neither it is the stock forward. Weights and names are the same, so an adapter trained here
    loads into the stock class.
    """

    def forward(
        self, input_ids=None, audio_embeds=None, labels=None, num_delay_tokens=None, label_weights=None, **kwargs
    ):  # fmt: skip
        if audio_embeds is None and label_weights is None:
            return super().forward(input_ids=input_ids, labels=labels, num_delay_tokens=num_delay_tokens, **kwargs)
        network = RealtimeNetwork(self, num_delay_tokens)
        if audio_embeds is None:
            audio_embeds = network.audio_embeddings(kwargs.pop("input_features"))
        hidden = network.hidden(input_ids, audio_embeds)
        learned = labels[:, 1:] != IGNORED
        logits = self.lm_head(hidden[:, :-1][learned])
        if label_weights is not None:
            weights = label_weights[:, 1:][learned]
            losses = torch.nn.functional.cross_entropy(logits.float(), labels[:, 1:][learned], reduction="none")
            total = kwargs.get("num_items_in_batch")
            return {"loss": (losses * weights).sum() / (weights.sum() if total is None else total)}
        loss = self.loss_function(
            logits=logits,
            labels=None,
            shift_labels=labels[:, 1:][learned],
            vocab_size=self.config.text_config.vocab_size,
            num_items_in_batch=kwargs.get("num_items_in_batch"),
        )
        return {"loss": loss}


class RealtimeNetwork(Network):
    """`delay_tokens`: how long the model waits between hearing and writing; it conditions every layer."""

    def __init__(self, model, delay_tokens: int, eos_id: int | None = None, pad_id: int | None = None):
        super().__init__(model, eos_id, pad_id)
        self._delay_tokens = delay_tokens

    @property
    def language_parts(self) -> Sequence[torch.nn.Module]:
        inner = self.stock
        return inner.model.language_model, inner.model.time_embedding, inner.lm_head

    @property
    def audio_parts(self) -> Sequence[torch.nn.Module]:
        inner = self.stock.model
        return inner.audio_tower, inner.multi_modal_projector

    def drop_audio_path(self) -> None:
        inner = self.stock.model
        inner.audio_tower = inner.multi_modal_projector = None

    def checkpoint_language_model(self) -> None:
        """Non-reentrant. Enabled on the whole model, it would crash: its hook makes the embeddings a leaf, which the stock
        forward then adds to in place."""
        language_model = self.stock.model.language_model
        language_model.activation_checkpointing_enable({"use_reentrant": False})
        language_model.disable_input_require_grads()

    def audio_embeddings(self, mel: torch.Tensor) -> torch.Tensor:
        """mel [B, 128, 8 × T] -> [B, T, hidden]. Causal: the first t embeddings do not depend on later frames."""
        inner = self.stock
        weight = inner.model.multi_modal_projector.linear_1.weight
        return inner.get_audio_features(mel.to(weight.device, weight.dtype), return_dict=True).pooler_output

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
        if "audio_embeds" in rows[0]:
            return batch | {"audio_embeds": pad_sequence([row["audio_embeds"] for row in rows], batch_first=True)}
        for row in rows:
            assert row["input_features"].shape[-1] == len(row["input_ids"]) * FRAMES_PER_TOKEN, "mel and ids run on one clock"
        frames = [row["input_features"].T for row in rows]
        mel = pad_sequence(frames, batch_first=True, padding_value=SILENCE_LOG_MEL)
        return batch | {"input_features": mel.transpose(1, 2).contiguous()}


def network_of(model: VoxtralRealtimeForConditionalGeneration, clock: Clock) -> RealtimeNetwork:
    return RealtimeNetwork(model, clock.delay_tokens, clock.eos_id, clock.pad_id)
