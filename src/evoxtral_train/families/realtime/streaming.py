"""The audio path of live streams: what the offline path computes, one audio token (80 ms) at a time.

Every slot is at its own position in its own utterance. It keeps what the next token needs of the past: two mel frames and one
frame between the convolutions, and the attention's keys and values of the last 15 s, in a ring:

    ring of 8 frames, window 5, after 10 frames    8  9  2  3  4  5  6  7      the frames whose keys are held
    the next token (4 frames, 10 to 13)            8  9 10 11 12 13  6  7      written over the oldest
    what frame 10 may see                          x  x  x  .  .  .  x  x      itself and the 4 before it

Source of the arithmetic: transformers' VoxtralRealtimeEncoder; a test compares it with the offline path.
"""

from collections.abc import Sequence

import numpy as np
import torch
from transformers.cache_utils import Cache

from ...units import FRAMES_PER_TOKEN, HOP_SAMPLES, MEL_BINS, SAMPLE_RATE_HZ, SILENCE_LOG_MEL, TOKEN_SAMPLES
from ..base import StreamEncoder
from ..placed_keys import PlacedKeys, visible_in_ring

_MARGIN_FRAMES = 2  # as in `Realtime.mel`
_MARGIN_SAMPLES = _MARGIN_FRAMES * HOP_SAMPLES
_AHEAD_SAMPLES = 40  # a token's last mel frame reads that far into the next token


class RealtimeStreamEncoder(StreamEncoder):
    """`extractor`: the checkpoint's feature extractor.

    A slot costs `bytes_per_slot` of memory. The work of a call grows with the highest slot in use, so take the lowest free one.
    """

    lead_samples = TOKEN_SAMPLES + _MARGIN_SAMPLES
    window_samples = _MARGIN_SAMPLES + TOKEN_SAMPLES + _AHEAD_SAMPLES

    def __init__(self, network, extractor, left_pad_tokens: int, slots: int, longest_tokens: int):
        inner = network.stock.model
        self._tower, self._projector, self._extractor = inner.audio_tower, inner.multi_modal_projector, extractor
        config, weight = self._tower.config, inner.multi_modal_projector.linear_1.weight
        self._frames = inner.config.downsample_factor  # of the encoder, per token
        self._window, self._device, self._dtype = config.sliding_window, weight.device, weight.dtype
        places = longest_tokens * self._frames
        if self._window is not None:
            needed = self._window - 1 + self._frames
            places = min(places, -(-needed // self._frames) * self._frames)
        self._places = places
        heads, head_dim = config.num_key_value_heads, config.head_dim
        # One place more than the ring has: there the slots write that take no part in a step.
        shape = (slots, places + 1, heads, head_dim)
        self._keys = [self._zeros(*shape) for _ in range(config.num_hidden_layers)]
        self._values = [self._zeros(*shape) for _ in range(config.num_hidden_layers)]
        convolutions = self._tower.embedder.conv1, self._tower.embedder.conv2
        self._conv = {conv.cache_key: self._zeros(slots, conv.in_channels, conv.left_pad) for conv in convolutions}
        self._position = torch.zeros(slots, dtype=torch.int64, device=self._device)  # of each slot's next frame
        tensors = [*self._keys, *self._values, *self._conv.values()]
        self.bytes_per_slot = sum(tensor[0].numel() * tensor.element_size() for tensor in tensors)
        # The left padding but for its last token, whose last frame reads the clip's first samples.
        silence = torch.full((1, MEL_BINS, FRAMES_PER_TOKEN), SILENCE_LOG_MEL, device=self._device, dtype=self._dtype)
        self.start_audio = torch.cat([self._step([0], silence) for _ in range(left_pad_tokens - 1)])
        self._start = [tensor[0].clone() for tensor in tensors]
        self._start_frames = (left_pad_tokens - 1) * self._frames

    def _zeros(self, *shape: int) -> torch.Tensor:
        return torch.zeros(*shape, device=self._device, dtype=self._dtype)

    @torch.inference_mode()
    def seat(self, slot: int) -> None:
        for tensor, start in zip([*self._keys, *self._values, *self._conv.values()], self._start, strict=True):
            tensor[slot] = start
        self._position[slot] = self._start_frames

    def encode(self, slots: Sequence[int], windows: np.ndarray) -> torch.Tensor:
        padded = np.pad(windows, ((0, 0), (0, _MARGIN_SAMPLES - _AHEAD_SAMPLES)))
        mel = self._extractor(list(padded), sampling_rate=SAMPLE_RATE_HZ, return_tensors="pt").input_features
        mel = mel[:, :, _MARGIN_FRAMES : _MARGIN_FRAMES + FRAMES_PER_TOKEN]
        return self._step(slots, mel.to(self._device, self._dtype))

    @torch.inference_mode()
    def _step(self, slots: Sequence[int], mel: torch.Tensor) -> torch.Tensor:
        """mel [n, 128, 8] of `slots` [n] -> [n, hidden]. All slots up to a power of two run, so that few shapes occur."""
        rows = min(1 << max(slots).bit_length(), len(self._position))
        where = torch.tensor(list(slots), device=self._device)
        whole = mel.new_full((rows, MEL_BINS, FRAMES_PER_TOKEN), SILENCE_LOG_MEL)
        whole[where] = mel
        active = torch.zeros(rows, dtype=torch.bool, device=self._device)
        active[where] = True
        offsets = torch.arange(self._frames, device=self._device)
        positions = self._position[:rows, None] + offsets  # [rows, frames]
        hidden = self._tower(
            inputs_embeds=self._tower.embedder(whole, _Convolutions(self._conv, rows, active)),
            position_ids=positions,
            attention_mask=visible_in_ring(positions, active, self._places, self._window),
            past_key_values=self._cache(positions, active, rows),
        ).last_hidden_state
        self._position[:rows] += active * self._frames
        return self._projector(hidden.reshape(rows, 1, -1))[where, 0]

    def _cache(self, positions: torch.Tensor, active: torch.Tensor, rows: int) -> Cache:
        places = torch.where(active[:, None], positions % self._places, self._places)
        places = (places + torch.arange(rows, device=self._device)[:, None] * (self._places + 1)).flatten()
        layers = zip(self._keys, self._values, strict=True)
        return Cache(layers=[PlacedKeys(keys[:rows], values[:rows], places) for keys, values in layers])


class _Convolutions:
    """What the convolutions read of the frames before, in the place of the stock padding cache, which has no idle rows."""

    def __init__(self, states: dict[str, torch.Tensor], rows: int, active: torch.Tensor):
        self._states, self._rows, self._active = states, rows, active[:, None, None]

    def update(self, hidden_states: torch.Tensor, cache_key: str, convolution) -> torch.Tensor:
        """[rows, channels, frames] -> the same with the frames before them."""
        state = self._states[cache_key][: self._rows]
        extended = torch.cat([state, hidden_states], dim=-1)
        state.copy_(torch.where(self._active, extended[..., -convolution.left_pad :], state))
        return extended
