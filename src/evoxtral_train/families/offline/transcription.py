"""Offline Voxtral's transcription prompt: the whole clip first, then the text.

A row, with 375 [AUDIO] for each 30 s chunk that the clip begins (here 3), and a target of two tokens [70, 71]:

    ids     <s> [INST] [BEGIN_AUDIO] [AUDIO] [AUDIO] [AUDIO] [/INST] lang:en [TRANSCRIBE] 70 71 </s> <pad>
    labels   .    .          .          .       .       .       .       .         .       70 71 </s>   .

Without a language, `lang:en` is missing. Source: mistral-common's encoding of a transcription request; checked in tests against
the stock processor.
"""

from dataclasses import asdict, dataclass

from ...errors import RowError
from ...units import samples_to_tokens, tokens_to_samples
from ..base import ClipSize, Layout, TimedPieces, encode_text

FAMILY = "voxtral"
CHUNK_TOKENS = 375
"""Audio tokens of a chunk of 30 s."""
CHUNK_FRAMES = 3000
"""Mel frames of a chunk."""

AUDIO_START = 3
"""The first [AUDIO] comes after <s> [INST] [BEGIN_AUDIO]."""
_LONGEST_ROW_TOKENS = 131_072  # positions of the published language model


@dataclass(frozen=True)
class PromptIds:
    """The special tokens of the prompt, and the ids of `lang:xx` for each language."""

    bos: int
    eos: int
    pad: int
    begin_instruction: int
    end_instruction: int
    begin_audio: int
    audio: int
    transcribe: int
    languages: dict[str, list[int]]


@dataclass(frozen=True)
class Transcription(Layout):
    """The target after the prompt of a transcription request."""

    name = "transcription_request"
    note = "it writes when the whole clip has been heard, after the prompt of a transcription request."
    hears_while_writing = False
    base_writes_words = True
    too_long_fix = "shorten the text, or raise layout.room_tokens"

    ids: PromptIds
    room_tokens: int

    @property
    def eos_id(self) -> int:
        return self.ids.eos

    @property
    def pad_id(self) -> int:
        return self.ids.pad

    def measure(self, samples: int, prepad_samples: int, language: str | None = None) -> ClipSize:
        """A clip is padded to whole chunks; `prepad_samples` has no part in it."""
        if language is not None and language not in self.ids.languages:
            raise RowError(f"unknown language {language!r}", fix="use an ISO 639-1 code such as en, or leave it out")
        clip = ClipSize(max(samples_to_tokens(samples), 1), 0, language)
        return ClipSize(clip.utterance_tokens, self.prompt_tokens(clip) + self.room_tokens, language)

    def target_ids(self, tokenizer, text: str, heard: TimedPieces, clip: ClipSize) -> list[int]:
        return encode_text(tokenizer, text)

    def prompt_tokens(self, clip: ClipSize) -> int:
        return self._audio_end(clip) + len(self._after_audio(clip))

    def prompt_ids(self, clip: ClipSize) -> list[int]:
        ids, audio = self.ids, CHUNK_TOKENS * chunks(clip.utterance_tokens)
        return [ids.bos, ids.begin_instruction, ids.begin_audio] + [ids.audio] * audio + self._after_audio(clip)

    def _after_audio(self, clip: ClipSize) -> list[int]:
        language = [] if clip.language is None else self.ids.languages[clip.language]
        return [self.ids.end_instruction, *language, self.ids.transcribe]

    def _audio_end(self, clip: ClipSize) -> int:
        return AUDIO_START + CHUNK_TOKENS * chunks(clip.utterance_tokens)

    def room_start(self, clip: ClipSize) -> int:
        return self.prompt_tokens(clip)

    def end(self, clip: ClipSize) -> int:
        """A row ends with EOS or with `max_new_tokens`, not with its audio."""
        return _LONGEST_ROW_TOKENS

    def audio_tokens(self, clip: ClipSize, tokens: int) -> int:
        return min(tokens, self._audio_end(clip))

    def mel_frames(self, clip: ClipSize, tokens: int) -> int:
        """Each position of a chunk hears all of it, and the encoder takes whole chunks only."""
        return CHUNK_FRAMES * chunks(clip.utterance_tokens)

    def sound(self, clip: ClipSize) -> tuple[int, int]:
        return AUDIO_START, AUDIO_START + clip.utterance_tokens

    def longest_samples(self, clip: ClipSize, target_tokens: int) -> int:
        """A further chunk would make the prompt longer."""
        return tokens_to_samples(CHUNK_TOKENS * chunks(clip.utterance_tokens))

    def record(self) -> dict:
        return {"family": FAMILY, "layout": self.name, "room_tokens": self.room_tokens, "prompt_ids": asdict(self.ids)}


def chunks(utterance_tokens: int) -> int:
    """30 s chunks that a clip begins: 375 -> 1, 376 -> 2."""
    return -(-utterance_tokens // CHUNK_TOKENS)
