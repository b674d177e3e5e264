"""Where on the 80 ms clock a target is written: one builder for training rows and prompts.

A row has `row_tokens` positions. Its first `prompt_tokens` ids are known beforehand (BOS and streaming pads); the target and EOS
follow; `<pad>` fills the rest. Only the target and EOS have labels; all others are -100 (transformers shifts labels itself).

Worked example, with left_pad_tokens = 2, delay_tokens = 1 (the real ones are 32 and 6), a clip of 3 audio tokens, target ids
[70, 71], BOS 1, EOS 2, pad 11, streaming pad P = 32, streaming word W = 33:

    packed    ids     1  P  P  P 70 71  2 11 11 11      the prompt, then the target at once
              labels  .  .  .  . 70 71  2  .  .  .
    deferred  ids     1  P  P  P  P  P 70 71  2 11      as many pads as it takes to hear the clip
              labels  .  .  .  .  .  . 70 71  2  .      out, plus the delay; then the target
    aligned   ids     1  P  P  P  P  W 70 71  2 11      each piece once it has been heard (here at the
              labels  .  .  .  .  P  W 70 71  2  .      clip's second token): see `Aligned`
"""

from abc import abstractmethod
from dataclasses import asdict, dataclass, replace

from ...errors import RowError
from ...units import FRAMES_PER_TOKEN, TOKEN_S, samples_to_tokens, tokens_to_samples
from ..base import ClipSize, Layout, TimedPieces, encode_text
from .clock import Clock
from .emission import written_tags, written_words

FAMILY = "voxtral_realtime"


@dataclass(frozen=True)
class RealtimeLayout(Layout):
    """The common part of the three layouts."""

    clock: Clock
    room_tokens: int

    too_long_fix = "shorten the text, or raise layout.room_tokens"

    @property
    def eos_id(self) -> int:
        return self.clock.eos_id

    @property
    def pad_id(self) -> int:
        return self.clock.pad_id

    def measure(self, samples: int, prepad_samples: int, language: str | None = None) -> ClipSize:
        """The row is as long as the stock processor makes it, and has at least `room_tokens` positions after the clip, so that
        a clip as long as the pre-padding still has time to write."""
        clip = ClipSize(samples_to_tokens(samples), self.clock.stock_tokens(samples, prepad_samples), language)
        return replace(clip, row_tokens=max(clip.row_tokens, self.room_start(clip) + self.room_tokens))

    def target_ids(self, tokenizer, text: str, heard: TimedPieces, clip: ClipSize) -> list[int]:
        return encode_text(tokenizer, text)

    @abstractmethod
    def prompt_tokens(self, clip: ClipSize) -> int: ...

    def prompt_ids(self, clip: ClipSize) -> list[int]:
        return [self.clock.bos_id] + [self.clock.streaming_pad_id] * (self.prompt_tokens(clip) - 1)

    def room_start(self, clip: ClipSize) -> int:
        return self.clock.written_at(clip.utterance_tokens)

    def audio_tokens(self, clip: ClipSize, tokens: int) -> int:
        """Audio is heard at every position."""
        return tokens

    def mel_frames(self, clip: ClipSize, tokens: int) -> int:
        return tokens * FRAMES_PER_TOKEN

    def sound(self, clip: ClipSize) -> tuple[int, int]:
        start = self.clock.left_pad_tokens
        return start, start + clip.utterance_tokens

    def longest_samples(self, clip: ClipSize, target_tokens: int) -> int:
        return tokens_to_samples(max(self._longest_tokens(clip, target_tokens), clip.utterance_tokens))

    @abstractmethod
    def _longest_tokens(self, clip: ClipSize, target_tokens: int) -> int:
        """The same in audio tokens; less than the clip already has if there is no spare room."""

    def record(self) -> dict:
        return {"family": FAMILY, "layout": self.name, "room_tokens": self.room_tokens, "clock": asdict(self.clock)}


class Packed(RealtimeLayout):
    """The published form: the target right after the prompt of 39 tokens, when half a second has been heard."""

    name = "packed"
    note = "it writes right after the prompt of 39 tokens, when half a second has been heard."
    hears_whole_clip = False
    too_long_fix = "shorten the text, or raise audio.prepad_samples"

    def measure(self, samples: int, prepad_samples: int, language: str | None = None) -> ClipSize:
        return ClipSize(samples_to_tokens(samples), self.clock.stock_tokens(samples, prepad_samples), language)

    def prompt_tokens(self, clip: ClipSize) -> int:
        return self.clock.prompt_tokens

    def room_start(self, clip: ClipSize) -> int:
        return self.clock.prompt_tokens

    def _longest_tokens(self, clip: ClipSize, target_tokens: int) -> int:
        return clip.row_tokens - self.clock.right_pad_tokens - self.clock.left_pad_tokens


class Deferred(RealtimeLayout):
    """The target once the whole clip has been heard."""

    name = "deferred"
    note = "it writes when the clip has been heard: feed [STREAMING_PAD] until then."

    def prompt_tokens(self, clip: ClipSize) -> int:
        return self.clock.written_at(clip.utterance_tokens)

    def _longest_tokens(self, clip: ClipSize, target_tokens: int) -> int:
        """The clip may take the room that the target leaves."""
        return clip.row_tokens - self.clock.written_at(0) - target_tokens - 1


class Aligned(RealtimeLayout):
    """The base model's own form: each word or tag when it has been heard plus the delay (arXiv 2602.11298, section 3.1).

    One token per 80 ms: `[STREAMING_PAD]` while there is nothing to write; pieces that are due by then share one
    `[STREAMING_WORD]` and follow it. EOS follows the last piece, never before the end of the utterance. The room is counted
    from the end of the utterance, although writing begins earlier.
    """

    name = "aligned"
    note = "it writes each word and tag when it has been heard, as the base does."
    has_times = True
    base_writes_words = True

    @property
    def filler_id(self) -> int:
        return self.clock.streaming_pad_id

    def prompt_tokens(self, clip: ClipSize) -> int:
        return self.clock.prompt_tokens

    def target_ids(self, tokenizer, text: str, heard: TimedPieces, clip: ClipSize) -> list[int]:
        """`heard` sorted by time. Pads, words and tags, one token for each 80 ms."""
        clock = self.clock
        due = [(clock.written_at(-(-round(end_s * 1000) // round(TOKEN_S * 1000))), ids) for ids, end_s in heard]
        start, end = self.prompt_tokens(clip), clock.written_at(clip.utterance_tokens)
        written: list[int] = []
        first = 0  # piece that is not yet written
        while first < len(due) or start + len(written) < end:
            stop = first
            while stop < len(due) and due[stop][0] <= start + len(written):
                stop += 1
            if stop == first:
                written.append(clock.streaming_pad_id)
                continue
            written.append(clock.streaming_word_id)
            for _, ids in due[first:stop]:
                written.extend(ids)
            first = stop
        row_tokens = start + len(written) + 1
        if row_tokens > clip.row_tokens:
            raise RowError(f"the transcript takes {row_tokens} tokens, the clip has {clip.row_tokens}", fix="shorten the text")
        return written

    def _longest_tokens(self, clip: ClipSize, target_tokens: int) -> int:
        """The words move with the audio; at most as many tokens follow the last word as do now."""
        return clip.utterance_tokens + clip.row_tokens - self.prompt_tokens(clip) - target_tokens - 1

    def retimed(self, target_ids: list[int], heard: TimedPieces, factor: float, clip: ClipSize) -> list[int]:
        return self.target_ids(None, "", [(ids, heard_s * factor) for ids, heard_s in heard], clip)

    def tag_times(self, tokenizer, token_ids: list[int]) -> list[dict]:
        return written_tags(self.clock, tokenizer, self.clock.prompt_tokens, token_ids)

    def word_times(self, tokenizer, token_ids: list[int]) -> list[tuple[str, float]]:
        return written_words(self.clock, tokenizer, self.clock.prompt_tokens, token_ids)


LAYOUTS = {layout.name: layout for layout in (Packed, Deferred, Aligned)}
