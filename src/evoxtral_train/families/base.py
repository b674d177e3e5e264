"""What differs between model families. Code above `families/` never checks the family; it uses these interfaces.

- `Family`: the data side of one checkpoint: its tokenizer, its features, its layouts. Needs no torch.
- `Layout`: the place of a target in a row, and the prompt that decoding starts from.
- `Network`: the model side: a loaded model that runs in two halves.

To add a family, add a folder with these three classes and list it in `FAMILIES` (`checkpoint.py`).
"""

from __future__ import annotations  # torch appears only in annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from ..errors import RowError, UsageError
from ..text.taxonomy import Taxonomy

if TYPE_CHECKING:
    import torch
    from transformers import Cache, PreTrainedModel

IGNORED = -100
"""The label of a position that is not learned."""

TimedPieces = list[tuple[list[int], float]]
"""The pieces of a target as token ids, each with the time in seconds at which it has been heard."""


def encode_text(tokenizer, text: str) -> list[int]:
    """Token ids without BOS and EOS; "" gives no tokens, so the target of a clip without tags is only EOS."""
    return tokenizer.encode(text, bos=False, eos=False) if text else []


def encode_piece(tokenizer, text: str) -> list[int]:
    """Token ids of a word or tag as in running text, with the space before it."""
    return tokenizer.encode(f" {text}", bos=False, eos=False)


@dataclass(frozen=True)
class ClipSize:
    """The sizes of a clip. `utterance_tokens`: audio tokens that cover its sound, without padding. `row_tokens`: length of its
    row. `language`: ISO 639-1 code, for families whose prompt names it."""

    utterance_tokens: int
    row_tokens: int
    language: str | None = None


@dataclass(frozen=True)
class Row:
    """A training row. `ids` and `labels`: `row_tokens` ints each; the first `prompt_tokens` ids are the prompt. Nothing after
    `needed_tokens` can change the loss."""

    ids: list[int]
    labels: list[int]
    prompt_tokens: int
    needed_tokens: int


@dataclass(frozen=True)
class Alignment:
    """`words` and `events` as in the manifest. `heard`: for each word, whether the base wrote exactly that word."""

    words: list[dict]
    events: list[dict]
    heard: list[bool]


class Layout(ABC):
    """The place of a target in a row, in token positions. Training and decoding share it, so decoding starts from the same
    prefix as training."""

    name: ClassVar[str]
    note: ClassVar[str]
    """For the model card: when an adapter trained in this layout writes."""
    has_times: ClassVar[bool] = False
    """Whether a position is also a time: the position of a word or tag shows when it was heard."""
    hears_whole_clip: ClassVar[bool] = True
    """Whether decoding can reach the end of a clip's audio."""
    hears_while_writing: ClassVar[bool] = True
    """Whether a row hears more audio with each token that it writes."""
    base_writes_words: ClassVar[bool] = False
    """Whether the base, without an adapter, transcribes in this layout."""
    room_tokens: int
    """Positions kept free for the target."""
    eos_id: int
    pad_id: int
    filler_id: int | None = None
    """The learned token that means "nothing to write yet"."""

    @abstractmethod
    def measure(self, samples: int, prepad_samples: int, language: str | None = None) -> ClipSize:
        """The sizes of a clip of `samples` samples at 16 kHz, padded to at least `prepad_samples`. Raises RowError for a
        language that the family does not know."""

    @abstractmethod
    def target_ids(self, tokenizer, text: str, heard: TimedPieces, clip: ClipSize) -> list[int]:
        """The learned tokens, without EOS. `heard`: the timed pieces of `text`; [] unless `has_times`. Raises RowError."""

    @abstractmethod
    def prompt_tokens(self, clip: ClipSize) -> int:
        """How many ids are known before the first target token is written."""

    @abstractmethod
    def prompt_ids(self, clip: ClipSize) -> list[int]:
        """The prompt that decoding starts from."""

    @abstractmethod
    def room_start(self, clip: ClipSize) -> int:
        """The position from which `room_tokens` and `max_new_tokens` are counted."""

    @abstractmethod
    def audio_tokens(self, clip: ClipSize, tokens: int) -> int:
        """How many of a row's first `tokens` positions lie before the end of its audio: what a cache must hold for them."""

    @abstractmethod
    def mel_frames(self, clip: ClipSize, tokens: int) -> int:
        """How many mel frames the audio at a row's first `tokens` positions is made from."""

    def end(self, clip: ClipSize) -> int:
        """One past the last position that decoding may write."""
        return clip.row_tokens

    def lay_out(self, clip: ClipSize, target_ids: list[int]) -> Row:
        """The training row of a clip; EOS is added and learned. Raises RowError when the target and EOS do not fit: a target
        is never cut."""
        start, written = self.prompt_tokens(clip), [*target_ids, self.eos_id]
        rest = clip.row_tokens - start - len(written)
        if rest < 0:
            raise RowError(
                f"the target has {len(target_ids)} tokens and EOS, but only {max(clip.row_tokens - start, 0)} fit after the "
                f"prompt of {start} in a row of {clip.row_tokens}",
                fix=self.too_long_fix,
            )
        return Row(
            ids=self.prompt_ids(clip) + written + [self.pad_id] * rest,
            labels=[IGNORED] * start + written + [IGNORED] * rest,
            prompt_tokens=start,
            needed_tokens=start + len(written),
        )

    too_long_fix: ClassVar[str] = "shorten the text"

    @abstractmethod
    def sound(self, clip: ClipSize) -> tuple[int, int]:
        """(first, last + 1): the positions of the audio embeddings that cover the clip's sound."""

    @abstractmethod
    def longest_samples(self, clip: ClipSize, target_tokens: int) -> int:
        """The greatest length that augmentation may give the clip so that its target still fits the row."""

    def retimed(self, target_ids: list[int], heard: TimedPieces, factor: float, clip: ClipSize) -> list[int]:
        """The target of a clip stretched by `factor`, whose new sizes are `clip`. Raises RowError."""
        return target_ids

    def tag_times(self, tokenizer, token_ids: list[int]) -> list[dict] | None:
        """[{tag, at_s, written_s}] for the tags written after the prompt; None without `has_times`."""
        return None

    def word_times(self, tokenizer, token_ids: list[int]) -> list[tuple[str, float]] | None:
        """(word, time in seconds at which it had been heard); None without `has_times`."""
        return None

    @abstractmethod
    def record(self) -> dict:
        """As JSON: the settings that `Family.restore_layout` needs, and the `family` that restores the layout."""


class Family(ABC):
    """The data side of one checkpoint. `folder`: its files; `tokenizer`: mistral-common's."""

    model_type: ClassVar[str]
    """As in the checkpoint's config.json."""
    title: ClassVar[str]
    hub_tag: ClassVar[str]
    """On the cards of its models."""
    stock_class: ClassVar[str]
    """The class of transformers that loads the checkpoint."""
    layouts: ClassVar[tuple[str, ...]]
    default_layout: ClassVar[str]
    default_target: ClassVar[str]
    default_room_tokens: ClassVar[int]
    default_new_tokens: ClassVar[int]
    """How many tokens a clip's text may take where no config says it."""
    writes_while_listening: ClassVar[bool]
    names_language: ClassVar[bool]
    """Whether its prompt names the language of a clip."""
    has_mistral_format: ClassVar[bool]
    """Whether `save_mistral` writes it."""
    usage: ClassVar[str] = ""
    """For the model card: how `model` and `processor`, of transformers' own classes, transcribe a file."""
    folder: Path
    tokenizer: object

    @classmethod
    @abstractmethod
    def open(cls, folder: Path) -> Family:
        """Raises EvoxtralError when the processor's files do not fit the family."""

    @abstractmethod
    def layout(self, name: str, room_tokens: int) -> Layout:
        """`name`: one of `layouts`."""

    @abstractmethod
    def own_layout(self, room_tokens: int) -> Layout:
        """The layout that the base itself was trained to transcribe in."""

    @abstractmethod
    def mel(self, samples: np.ndarray, frames: int) -> np.ndarray:
        """Mono float32 samples at 16 kHz -> the first `frames` frames of the features of a clip's row: float32 [128, frames].
        `frames` as by `Layout.mel_frames`. Raises RowError."""

    @staticmethod
    @abstractmethod
    def trim_silence(mel: np.ndarray) -> tuple[np.ndarray, int]:
        """The part of a row's features that a packed dataset stores: ([128, n], index of the first frame kept). Lossless."""

    @staticmethod
    @abstractmethod
    def restore_silence(kept: np.ndarray, first_frame: int, frames: int) -> np.ndarray:
        """The first `frames` frames of a stored row: float32 [128, frames]."""

    @staticmethod
    @abstractmethod
    def restore_layout(record: dict) -> Layout:
        """The layout of a packed dataset, from its `dataset.json`."""

    @classmethod
    def align(cls, text: str, words: list[tuple[str, float]], duration_s: float, taxonomy: Taxonomy) -> Alignment:
        """Times for the words and tags of `text` from the `words` that the base wrote while it listened."""
        raise NotImplementedError

    @classmethod
    def require_times(cls) -> None:
        """Raises UsageError for a family that cannot `align`."""
        if cls.writes_while_listening:
            return
        raise UsageError(f"{cls.title} does not write while it listens, so it cannot time words", where="model.base",
                         fix="use a Voxtral Realtime base")  # fmt: skip

    @property
    def languages(self) -> Collection[str]:
        """The codes (ISO 639-1) of the languages that its prompt can name; none if it names no language."""
        return ()

    @classmethod
    def require_named_language(cls) -> None:
        """Raises UsageError for a family whose prompt names no language."""
        if not cls.names_language:
            what, fix = f"{cls.title} finds the language itself: its prompt names none", "set it to null"
            raise UsageError(what, where="language", fix=fix)

    def check_language(self, language: str | None) -> None:
        """Raises UsageError for a language that its prompt cannot name."""
        if language is None:
            return
        self.require_named_language()
        if language not in self.languages:
            fix = "use an ISO 639-1 code such as en, or leave it out"
            raise UsageError(f"unknown language {language!r}", where="language", fix=fix)

    @classmethod
    def require_mistral_format(cls) -> None:
        """Raises UsageError for a family that `save_mistral` does not write."""
        if not cls.has_mistral_format:
            what, fix = f"{cls.title} is not written in Mistral's own format", "use format: transformers"
            raise UsageError(what, where="format", fix=fix)

    @abstractmethod
    def load(self, dtype: str) -> Network:
        """The checkpoint's weights in evaluation mode, frozen, on the CPU. Raises UsageError."""

    @classmethod
    @abstractmethod
    def describe(cls, folder: Path | None) -> Network:
        """The model's shape on the meta device, without weights. `folder` None: the published model's shape."""

    @abstractmethod
    def save(self, model: PreTrainedModel, folder: Path) -> None:
        """Write `model`, with this checkpoint's processor, as the stock class loads it."""

    @abstractmethod
    def save_mistral(self, model: PreTrainedModel, folder: Path) -> None:
        """Write `model`, with this checkpoint's tokenizer, in Mistral's own format. Raises UsageError if that cannot hold it."""


class StreamEncoder(ABC):
    """The audio path of live streams: each slot holds one utterance, at its own position, and one call encodes one audio token of
    many slots.

    The audio of an utterance's first `start_tokens` positions is always the same silence: `start_audio` [start_tokens, hidden] is
    computed once. Token k of the utterance's own audio then reads `window_samples` samples from `k × TOKEN_SAMPLES` on, in the
    utterance's samples after `lead_samples` zeros.
    """

    start_audio: torch.Tensor
    lead_samples: int
    window_samples: int
    bytes_per_slot: int

    @property
    def start_tokens(self) -> int:
        return len(self.start_audio)

    @abstractmethod
    def seat(self, slot: int) -> None:
        """Begin an utterance: forget the slot's last one."""

    @abstractmethod
    def encode(self, slots: Sequence[int], windows: np.ndarray) -> torch.Tensor:
        """The next token's `windows`, float32 [n, window_samples], of n different slots -> their audio [n, hidden]. Other slots
        stay as they are."""


class Network(ABC):
    """`model`: the stock class or a subclass that reads the same checkpoints, bare or inside a PEFT wrapper. `eos_id` and
    `pad_id`: the tokenizer's; None if nothing is decoded or collated."""

    own_audio_path: bool = False
    """Whether a full fine-tune made these weights: the base's audio, cached, is then not this network's."""

    def __init__(self, model, eos_id: int | None = None, pad_id: int | None = None):
        self.model, self.eos_id, self.pad_id = model, eos_id, pad_id

    def around(self, model) -> Network:
        """A copy for `model`, with or without an adapter."""
        network = copy(self)
        network.model = model
        return network

    @property
    def stock(self) -> PreTrainedModel:
        """The model inside the PEFT wrapper; its linear layers then carry the adapter."""
        return self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model

    @property
    def dtype(self) -> torch.dtype:
        """Of the language model; a full fine-tune may have a frozen audio tower of another one."""
        return self.stock.get_input_embeddings().weight.dtype

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
    def audio_parts(self) -> Sequence[torch.nn.Module]:
        """The audio tower, then the projector."""
        inner = self.stock.model
        return inner.audio_tower, inner.multi_modal_projector

    def place_language_model(self, device: torch.device) -> None:
        """Separate from the audio path: with an audio cache, a GPU never holds both."""
        for part in self.language_parts:
            part.to(device)

    def place_audio_path(self, device: torch.device) -> None:
        for part in self.audio_parts:
            part.to(device)

    def drop_audio_path(self, projector: bool = True) -> None:
        """Free the audio tower once its output is cached, and the projector unless it is trained; otherwise `Trainer` would
        move them to the GPU too."""
        inner = self.stock.model
        inner.audio_tower = None
        if projector:
            inner.multi_modal_projector = None

    @abstractmethod
    def checkpoint_language_model(self) -> None:
        """Enable gradient checkpointing on the language model only, after wrapping with an adapter."""

    @property
    @abstractmethod
    def state_width(self) -> int:
        """The width of what enters the projector."""

    @abstractmethod
    def audio_states(self, mels: Sequence[torch.Tensor], tokens: int) -> torch.Tensor:
        """The mel of each row, [128, frames], -> what enters the projector at its first `tokens` positions:
        [B, tokens, state_width], zeros where a position has no audio."""

    @abstractmethod
    def project(self, states: torch.Tensor) -> torch.Tensor:
        """[..., state_width] -> [..., hidden]. The projectors have no bias: zeros stay zeros."""

    def audio_embeddings(self, mels: Sequence[torch.Tensor], tokens: int) -> torch.Tensor:
        """The mel of each row, [128, frames], -> the projected audio at its first `tokens` positions: [B, tokens, hidden]."""
        return self.project(self.audio_states(mels, tokens))

    def streams(self, family: Family, slots: int, longest_tokens: int) -> StreamEncoder:
        """The audio path for up to `slots` live streams, whose utterances have at most `longest_tokens` positions.
        Raises UsageError for a family that must hear a whole clip first."""
        raise UsageError(f"{family.title} hears a whole clip before it writes, so it has no live streams", where="model.base",
                         fix="use a Voxtral Realtime base")  # fmt: skip

    @abstractmethod
    def hidden(
        self, ids: torch.Tensor, audio: torch.Tensor, cache: Cache | None = None, position_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:  # fmt: skip
        """ids [B, T] and their audio [B, T, hidden] -> last hidden states [B, T, hidden]; `cache` is extended.

        `position_ids` [B, T] and `attention_mask` [B, 1, T, keys] (bool) are for rows at different positions; by default
        all rows continue where the cache ends.
        """

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """[..., hidden] -> [..., vocabulary]"""
        return self.stock.lm_head(hidden)

    @abstractmethod
    def collate(self, rows: Sequence[dict[str, torch.Tensor]]) -> dict:
        """Training rows -> one batch, padded on the right, with the names that the model's forward takes.

        Each row has `input_ids` [T], `labels` [T], one of `input_features` [128, frames], `audio_embeds` [T, hidden] and
        `audio_states` [T, state_width], and optionally `label_weights` [T].
        """

    def sizes(self) -> dict[str, int]:
        """The number of all parameters and of the trained ones."""
        parameters = list(self.model.parameters())
        return {
            "parameters": sum(parameter.numel() for parameter in parameters),
            "trainable_parameters": sum(parameter.numel() for parameter in parameters if parameter.requires_grad),
        }
