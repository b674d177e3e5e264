"""The table of rows that are being decoded: every row is at its own position in its own clip.

A row is one candidate of one clip. The table has a fixed number of rows of a fixed width, so every
step has the same shape; a row that has ended is free for the next candidate.

    row 0   clip a, candidate 0   k k k k k k . .     position 5
    row 1   clip a, candidate 1   k k k k k k . .     position 5
    row 2   clip b, candidate 0   k k k . . . . .     position 2      (k: a key and a value)
    row 3   free

Keys beyond a row's position are masked, so leftovers of an earlier row are never read.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from transformers.cache_utils import Cache, DynamicCache

from ..families.placed_keys import PlacedKeys


@dataclass
class RowTable:
    """`cache`: keys and values. `audio` [R, W, hidden]: the clip's audio embeddings by position.
    `position` [R]: of the last token that the model has read or is about to read; `hidden` [R, hidden]:
    the output at `position`. `end` [R]: one past the row's last position. `written` [R, W]: tokens by position.
    `token_log_probs` [R, W]: of each of them; `log_prob` [R]: their sum. `noise_key` [R]: see `sampling`.
    `adapter` [R]: its number. `tag_state` [R]: see `known_tags`. `live` [R]: whether the row is taken."""

    cache: Cache
    audio: torch.Tensor
    hidden: torch.Tensor
    position: torch.Tensor
    end: torch.Tensor
    written: torch.Tensor
    token_log_probs: torch.Tensor
    log_prob: torch.Tensor
    noise_key: torch.Tensor
    adapter: torch.Tensor
    tag_state: torch.Tensor
    live: torch.Tensor

    @classmethod
    def empty(cls, config, rows: int, width: int, dtype: torch.dtype, device: torch.device) -> "RowTable":
        """`config`: the language model's."""

        def zeros(*shape: int, dtype: torch.dtype) -> torch.Tensor:
            return torch.zeros(shape, dtype=dtype, device=device)

        states = (rows, width, config.num_key_value_heads, config.head_dim)
        places = zeros(rows, dtype=torch.int64)
        layers = [
            PlacedKeys(zeros(*states, dtype=dtype), zeros(*states, dtype=dtype), places) for _ in range(config.num_hidden_layers)
        ]
        return cls(
            cache=Cache(layers=layers),
            audio=zeros(rows, width, config.hidden_size, dtype=dtype),
            hidden=zeros(rows, config.hidden_size, dtype=dtype),
            position=zeros(rows, dtype=torch.int64),
            end=zeros(rows, dtype=torch.int64),
            written=zeros(rows, width, dtype=torch.int64),
            token_log_probs=zeros(rows, width, dtype=torch.float32),
            log_prob=zeros(rows, dtype=torch.float64),
            noise_key=zeros(rows, dtype=torch.int64),
            adapter=zeros(rows, dtype=torch.int64),
            tag_state=zeros(rows, dtype=torch.int64),
            live=zeros(rows, dtype=torch.bool),
        )

    @property
    def rows(self) -> int:
        return self.audio.shape[0]

    @property
    def width(self) -> int:
        return self.audio.shape[1]

    def seat(
        self, rows: Sequence[int], prefilled: DynamicCache, hidden: torch.Tensor, audio: torch.Tensor,
        prompt_tokens: Sequence[int], ends: Sequence[int], noise_keys: Sequence[int], adapters: torch.Tensor,
        tag_states: Sequence[int],
    ) -> None:  # fmt: skip
        """Put B clips, whose prompts have been read, on `rows` [B × candidates], clip by clip.

        `prefilled`: B rows. hidden [B, hidden]: at the end of each prompt. audio [B, T, hidden].
        `prompt_tokens`, `ends`, `adapters` and `tag_states` [B]; `noise_keys` [B × candidates].
        """
        device, repeats = self.audio.device, len(rows) // len(prompt_tokens)
        where = torch.tensor(rows, device=device)
        for layer, filled in zip(self.cache.layers, prefilled.layers, strict=True):
            for stored, states in ((layer.keys, filled.keys), (layer.values, filled.values)):
                stored[where, : states.shape[2]] = states.transpose(1, 2).repeat_interleave(repeats, dim=0)
        self.audio[where, : audio.shape[1]] = audio.repeat_interleave(repeats, dim=0)
        self.hidden[where] = hidden.repeat_interleave(repeats, dim=0)
        self.position[where] = torch.tensor(prompt_tokens, device=device).repeat_interleave(repeats) - 1
        self.end[where] = torch.tensor(ends, device=device).repeat_interleave(repeats)
        self.adapter[where] = adapters.repeat_interleave(repeats)
        self.tag_state[where] = torch.tensor(tag_states, device=device).repeat_interleave(repeats)
        self.noise_key[where] = torch.tensor(noise_keys, device=device)
        self.log_prob[where] = 0.0
        self.live[where] = True

    def write(self, tokens: torch.Tensor, log_probs: torch.Tensor, eos_id: int) -> list[int]:
        """Append tokens [R] to the live rows; returns the rows that end with them and frees those."""
        self.position += self.live
        self.written.scatter_(1, self.position[:, None], tokens[:, None])
        self.token_log_probs.scatter_(1, self.position[:, None], log_probs[:, None].float())
        self.log_prob += torch.where(self.live, log_probs, 0.0)
        ended = self.live & ((tokens == eos_id) | (self.position + 1 >= self.end))
        self.live &= ~ended
        return ended.nonzero()[:, 0].tolist()

    def next_inputs(self, sliding_window: int | None) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The step's input: the last written tokens [R, 1], their audio [R, 1, hidden], and which keys each
        row may see, [R, 1, 1, W] bool. Also sets where the cache writes. A free row reads harmless values."""
        every = torch.arange(self.rows, device=self.audio.device)
        self.cache.layers[0].places.copy_(every * self.width + self.position)
        keys, own = torch.arange(self.width, device=self.audio.device), self.position[:, None]
        visible = keys <= own
        if sliding_window is not None:
            visible &= keys > own - sliding_window
        return self.written.gather(1, own), self.audio[every, self.position][:, None], visible[:, None, None]

    def moved(self, rows: int, width: int, kept: Sequence[int]) -> "RowTable":
        """A table of another size whose first rows are the rows `kept` of this one. This table is used up:
        its layers are freed one by one, so memory never contains both tables in full."""
        index = torch.tensor(kept, dtype=torch.int64, device=self.audio.device)
        places, layers = index.new_zeros(rows), []
        for old in self.cache.layers:
            layers.append(PlacedKeys(_resized(old.keys, index, rows, width), _resized(old.values, index, rows, width), places))
            old.keys = old.values = None
        others = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "cache"}
        wide = ("audio", "written", "token_log_probs")
        resized = {name: _resized(each, index, rows, width if name in wide else None) for name, each in others.items()}
        return RowTable(Cache(layers=layers), **resized)


def _resized(tensor: torch.Tensor, kept: torch.Tensor, rows: int, width: int | None) -> torch.Tensor:
    """The rows `kept`, then zeros up to `rows`; with a width the second dimension is cut or filled to it."""
    if width is None:
        resized = tensor.new_zeros(rows, *tensor.shape[1:])
        resized[: len(kept)] = tensor[kept]
        return resized
    resized = tensor.new_zeros(rows, width, *tensor.shape[2:])
    common = min(width, tensor.shape[1])
    resized[: len(kept), :common] = tensor[kept, :common]
    return resized
