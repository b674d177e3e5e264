"""Offline Voxtral's model, in two halves that run one after the other.

The stock forward puts the projected audio in place of the [AUDIO] tokens' embeddings and runs the language model.
`audio_embeddings` and `hidden` are those two steps, so that a clip is encoded once; a test checks that they equal the stock
forward.
"""

from collections.abc import Sequence

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import Cache, VoxtralForConditionalGeneration
from transformers.conversion_mapping import get_checkpoint_conversion_mapping, register_checkpoint_conversion_mapping

from ...units import MEL_BINS
from ..base import IGNORED, Network
from ..loss import loss_of
from .transcription import AUDIO_START, CHUNK_FRAMES, CHUNK_TOKENS, FAMILY, PromptIds


class CachedAudioVoxtralForConditionalGeneration(VoxtralForConditionalGeneration):
    """The stock class with two more inputs, each in place of `input_features`: the projected audio `audio_embeds` [B, T, hidden],
    or `audio_states` [B, T, width], which the projector still has to project.

    Then only the language model runs, and `lm_head` only at labels: the same loss. With neither it is the stock forward. Weights
    and names are the same, so an adapter trained here loads into the stock class.
    """

    def forward(self, input_ids=None, audio_embeds=None, audio_states=None, labels=None, **kwargs):
        if audio_embeds is None and audio_states is None:
            return super().forward(input_ids=input_ids, labels=labels, **kwargs)
        network = OfflineNetwork(self)
        audio = network.project(audio_states) if audio_embeds is None else audio_embeds
        return loss_of(self, network.hidden(input_ids, audio), labels, None, kwargs.get("num_items_in_batch"))


# Transformers renames a published checkpoint's weights for its own classes only; without this, `lm_head` would stay random.
register_checkpoint_conversion_mapping(
    CachedAudioVoxtralForConditionalGeneration.__name__, get_checkpoint_conversion_mapping(FAMILY), overwrite=True
)


class OfflineNetwork(Network):
    @property
    def language_parts(self) -> Sequence[torch.nn.Module]:
        inner = self.stock
        return inner.model.language_model, inner.lm_head

    def checkpoint_language_model(self) -> None:
        self.stock.model.language_model.activation_checkpointing_enable({"use_reentrant": False})

    @property
    def state_width(self) -> int:
        return self.stock.config.audio_config.intermediate_size

    def audio_states(self, mels: Sequence[torch.Tensor], tokens: int) -> torch.Tensor:
        """A mel has 3,000 frames for each chunk."""
        tower = self.stock.model.audio_tower
        weight = tower.conv1.weight
        hidden = tower(chunked(mels).to(weight.device, weight.dtype), return_dict=True).last_hidden_state
        flat = hidden.reshape(-1, self.state_width)
        states, first = flat.new_zeros(len(mels), tokens, self.state_width), 0
        for row, mel in zip(states, mels, strict=True):
            count = mel.shape[-1] // CHUNK_FRAMES * CHUNK_TOKENS
            part = row[AUDIO_START : AUDIO_START + count]
            part.copy_(flat[first : first + len(part)])
            first += count
        return states

    def project(self, states: torch.Tensor) -> torch.Tensor:
        projector = self.stock.model.multi_modal_projector
        return projector(states.to(projector.linear_1.weight.dtype))

    def hidden(
        self, ids: torch.Tensor, audio: torch.Tensor, cache: Cache | None = None, position_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:  # fmt: skip
        """An [AUDIO] that the model itself writes has no audio and keeps its own embedding, as in the stock forward."""
        inner = self.stock
        embeds = inner.get_input_embeddings()(ids)
        heard = (ids == inner.config.audio_token_id)[..., None] & (audio != 0).any(-1, keepdim=True)
        outputs = inner.model.language_model(
            inputs_embeds=torch.where(heard, audio.to(embeds.dtype), embeds),
            past_key_values=cache,
            use_cache=cache is not None,
            position_ids=position_ids,
            attention_mask=attention_mask,
        )
        return outputs.last_hidden_state

    def collate(self, rows: Sequence[dict[str, torch.Tensor]]) -> dict:
        """Ids are padded with `<pad>`, labels with -100. Features are the chunks of all rows, [Σ chunks, 128, 3000]. No attention
        mask is needed: padding comes after everything that is scored."""
        batch = {
            "input_ids": pad_sequence([row["input_ids"] for row in rows], batch_first=True, padding_value=self.pad_id),
            "labels": pad_sequence([row["labels"] for row in rows], batch_first=True, padding_value=IGNORED),
        }
        for name in ("audio_embeds", "audio_states"):
            if name in rows[0]:
                return batch | {name: pad_sequence([row[name] for row in rows], batch_first=True)}
        return batch | {"input_features": chunked([row["input_features"] for row in rows])}


def chunked(mels: Sequence[torch.Tensor]) -> torch.Tensor:
    """The mel of each row, [128, 3000 × k] -> [Σ k, 128, 3000], as the stock forward takes them."""
    return torch.cat([mel.reshape(MEL_BINS, -1, CHUNK_FRAMES).transpose(0, 1) for mel in mels])


def network_of(model: VoxtralForConditionalGeneration, ids: PromptIds) -> OfflineNetwork:
    return OfflineNetwork(model, ids.eos, ids.pad)
