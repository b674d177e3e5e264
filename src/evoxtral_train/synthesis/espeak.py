"""Speech from text with espeak-ng, called through ctypes (package `espeakng-loader`, GPL).

Source: espeak-ng's public header `speak_lib.h`, version 1.52.
"""

import _ctypes
import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from ..errors import UsageError

_AUDIO_OUTPUT_SYNCHRONOUS = 2
_INITIALIZE_PHONEME_EVENTS = 0x0001
_INITIALIZE_DONT_EXIT = 0x8000
_CHARS_UTF8 = 1
_EVENT_LIST_TERMINATED, _EVENT_WORD, _EVENT_PHONEME = 0, 1, 7
_RATE, _VOLUME, _PITCH, _RANGE = 1, 2, 3, 4


class _EventId(ctypes.Union):
    _fields_ = [("number", ctypes.c_int), ("name", ctypes.c_char_p), ("string", ctypes.c_char * 8)]


class _Event(ctypes.Structure):
    _fields_ = [
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", _EventId),
    ]


_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event))


@dataclass(frozen=True)
class Utterance:
    """`samples`: mono float32 in [-1, 1] at `rate_hz`. `word_starts` and `phonemes`: sample
    indices at `rate_hz`, the latter with espeak's phoneme names ("" marks silence)."""

    samples: np.ndarray
    rate_hz: int
    word_starts: list[int]
    phonemes: list[tuple[int, str]]


class Espeak:
    """espeak-ng, ready to speak. Raises UsageError if the optional package is missing.

    The library keeps the phase of its oscillators in C globals between utterances. It is
    therefore reloaded for each utterance (about a millisecond), so that no utterance depends
    on earlier ones.
    """

    def __init__(self):
        try:
            import espeakng_loader
        except ImportError:
            raise UsageError(
                "espeak-ng is not installed", fix="run: pip install 'evoxtral[synth]' (an extra because espeak-ng is GPL)"
            ) from None
        self._library_path, self._data_path = espeakng_loader.get_library_path(), espeakng_loader.get_data_path()
        self._libc = ctypes.CDLL(None)
        self._chunks: list[np.ndarray] = []
        self._words: list[int] = []
        self._phonemes: list[tuple[int, str]] = []
        self._callback = _CALLBACK(self._receive)  # kept alive: C holds only a pointer

    def speak(
        self, text: str, *, voice: str, rate_wpm: int, pitch: int, pitch_range: int, volume: int = 100, seed: int = 0
    ) -> Utterance:
        """Speak `text` in `voice` ("en-us+f2"). `pitch` and `pitch_range` run from 0 to 99 (50 is
        the voice's own), `volume` from 0 to 200. `seed` fixes the breath noise."""
        self._chunks, self._words, self._phonemes = [], [], []
        parameters = ((_RATE, rate_wpm), (_VOLUME, volume), (_PITCH, pitch), (_RANGE, pitch_range))
        with self._library() as (library, rate_hz):
            if library.espeak_SetVoiceByName(voice.encode()) != 0:
                raise UsageError(f"espeak-ng has no voice {voice!r}", fix="use a name such as en-us, en+f1 or en-us+m3")
            for parameter, value in parameters:
                library.espeak_SetParameter(parameter, int(value), 0)
            # Breath noise comes from espeak's own generator (otherwise seeded by the clock) and from C's rand().
            library.espeak_ng_SetRandSeed(ctypes.c_long(seed & 0x7FFFFFFF))
            self._libc.srand(seed & 0x7FFFFFFF)
            encoded = text.encode("utf-8") + b"\0"
            if library.espeak_Synth(encoded, len(encoded), 0, 1, 0, _CHARS_UTF8, None, None) != 0:
                raise UsageError(f"espeak-ng could not speak {text!r}")
        samples = np.concatenate(self._chunks) if self._chunks else np.zeros(0, np.int16)
        return Utterance(samples.astype(np.float32) / 32768.0, rate_hz, self._words, self._phonemes)

    @contextmanager
    def _library(self) -> Iterator[tuple[ctypes.CDLL, int]]:
        """A freshly loaded library, and its sample rate in Hz."""
        library = ctypes.CDLL(self._library_path)
        try:
            rate_hz = library.espeak_Initialize(
                _AUDIO_OUTPUT_SYNCHRONOUS, 0, self._data_path.encode(), _INITIALIZE_PHONEME_EVENTS | _INITIALIZE_DONT_EXIT
            )
            if rate_hz <= 0:
                raise UsageError("espeak-ng did not start", fix="reinstall the package espeakng-loader")
            library.espeak_Synth.argtypes = [
                ctypes.c_void_p, ctypes.c_size_t, ctypes.c_uint, ctypes.c_int,
                ctypes.c_uint, ctypes.c_uint, ctypes.c_void_p, ctypes.c_void_p,
            ]  # fmt: skip
            library.espeak_SetSynthCallback(self._callback)
            yield library, rate_hz
            library.espeak_Terminate()
        finally:
            _ctypes.dlclose(library._handle)

    def _receive(self, wav, count, events) -> int:
        if wav and count > 0:
            self._chunks.append(np.ctypeslib.as_array(wav, shape=(count,)).copy())
        index = 0
        while events[index].type != _EVENT_LIST_TERMINATED:
            event = events[index]
            if event.type == _EVENT_WORD:
                self._words.append(event.sample)
            elif event.type == _EVENT_PHONEME:
                self._phonemes.append((event.sample, event.id.string.decode("utf-8", "replace")))
            index += 1
        return 0
