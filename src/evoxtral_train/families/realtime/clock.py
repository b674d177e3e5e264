"""The model's clock: the position of each token, from numbers read from the processor.

At position i the decoder has heard audio tokens 0..i and predicts token i+1. The audio begins
with `left_pad_tokens` of silence, so token j is written when (j - left_pad_tokens) × 80 ms of
the clip have been heard. Source: transformers' VoxtralRealtimeProcessor, mistral-common's
AudioConfig; checked in tests against the stock processor.
"""

from dataclasses import dataclass

from ...errors import UsageError
from ...units import HOP_SAMPLES, PREPAD_SAMPLES, SAMPLE_RATE_HZ, TOKEN_SAMPLES, samples_to_tokens


@dataclass(frozen=True)
class Clock:
    bos_id: int
    eos_id: int
    pad_id: int
    streaming_pad_id: int
    streaming_word_id: int
    left_pad_tokens: int
    delay_tokens: int
    right_pad_tokens: int

    @classmethod
    def of(cls, processor) -> "Clock":
        """Raises UsageError when the processor's rates are not those of Voxtral Realtime."""
        audio = processor.mistral_common_audio_config
        found = (audio.sampling_rate, audio.encoding_config.hop_length, audio.raw_audio_length_per_tok)
        if found != (SAMPLE_RATE_HZ, HOP_SAMPLES, TOKEN_SAMPLES):
            raise UsageError(
                f"this processor runs at {found} (Hz, samples per mel frame, samples per token), "
                f"not at {(SAMPLE_RATE_HZ, HOP_SAMPLES, TOKEN_SAMPLES)}",
                fix="use a Voxtral Realtime checkpoint",
            )
        tokenizer = processor.tokenizer.tokenizer.instruct_tokenizer.tokenizer
        return cls(
            bos_id=tokenizer.bos_id,
            eos_id=tokenizer.eos_id,
            pad_id=tokenizer.pad_id,
            streaming_pad_id=tokenizer.get_special_token("[STREAMING_PAD]"),
            streaming_word_id=tokenizer.get_special_token("[STREAMING_WORD]"),
            left_pad_tokens=audio.n_left_pad_tokens,
            delay_tokens=audio.get_num_delay_tokens(),
            right_pad_tokens=audio.n_right_pad_tokens(),
        )

    @property
    def prompt_tokens(self) -> int:
        """BOS, the left padding, the delay: 39 at 480 ms."""
        return 1 + self.left_pad_tokens + self.delay_tokens

    def written_at(self, heard_tokens: int) -> int:
        """Index of the first token that may be written once `heard_tokens` audio tokens of the
        clip have been heard and the delay has passed; never inside the prompt."""
        return max(self.left_pad_tokens + heard_tokens + self.delay_tokens, self.prompt_tokens)

    def stock_tokens(self, samples: int, prepad_samples: int = PREPAD_SAMPLES) -> int:
        """Length of the row that the stock processor makes of a pre-padded clip: 237 at 240,480 samples."""
        return self.left_pad_tokens + samples_to_tokens(max(samples, prepad_samples)) + self.right_pad_tokens
