"""Conversions between seconds, samples, mel frames and audio tokens; they are made nowhere else.

The model's clock (transformers' VoxtralRealtime classes and mistral-common's audio config):
16,000 samples per second, one mel frame per 160 samples (10 ms), one audio token per
8 mel frames (80 ms).
"""

SAMPLE_RATE_HZ = 16_000
HOP_SAMPLES = 160
FRAMES_PER_TOKEN = 8
TOKEN_SAMPLES = HOP_SAMPLES * FRAMES_PER_TOKEN
TOKEN_S = TOKEN_SAMPLES / SAMPLE_RATE_HZ
MEL_BINS = 128

PREPAD_SAMPLES = 240_480
"""Every clip is padded with zeros to at least this length (Evoxtral-Realtime model card)."""

SILENCE_LOG_MEL = -0.625
"""Log-mel value of digital silence: (max(log10(1e-10), 1.5 - 8) + 4) / 4, the feature extractor's floor."""


def samples_to_tokens(samples: int) -> int:
    """Audio tokens that cover `samples`, rounded up: 1 -> 1, 1280 -> 1, 1281 -> 2."""
    return -(-samples // TOKEN_SAMPLES)


def tokens_to_samples(tokens: int) -> int:
    return tokens * TOKEN_SAMPLES


def seconds_to_samples(seconds: float) -> int:
    return round(seconds * SAMPLE_RATE_HZ)


def samples_to_seconds(samples: int) -> float:
    return samples / SAMPLE_RATE_HZ
