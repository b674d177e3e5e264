"""What clients send: PCM16, mono, in pieces of any size. What the engine takes: float32 at 16 kHz."""

import numpy as np
import soxr

from ..units import SAMPLE_RATE_HZ

RATES_HZ = (16_000, 24_000)


class PcmReader:
    """The same samples, however the bytes were split, as reading and resampling them at once."""

    def __init__(self, rate_hz: int):
        self._resampler = None
        if rate_hz != SAMPLE_RATE_HZ:
            self._resampler = soxr.ResampleStream(rate_hz, SAMPLE_RATE_HZ, 1, dtype="float32")
        self._half_sample = b""

    def read(self, pcm: bytes) -> np.ndarray:
        """float32 [samples]; what the resampler holds back comes with later bytes. Half a sample waits for its other half."""
        pcm = self._half_sample + pcm
        whole = len(pcm) - len(pcm) % 2
        self._half_sample = pcm[whole:]
        samples = np.frombuffer(pcm[:whole], "<i2").astype(np.float32) / 32768
        return samples if self._resampler is None else self._resampler.resample_chunk(samples)

    def flush(self) -> np.ndarray:
        """float32 [samples]: the rest. The next bytes begin a new sound; half a sample is dropped."""
        self._half_sample = b""
        if self._resampler is None:
            return np.zeros(0, np.float32)
        rest = self._resampler.resample_chunk(np.zeros(0, np.float32), last=True)
        self._resampler.clear()
        return rest
