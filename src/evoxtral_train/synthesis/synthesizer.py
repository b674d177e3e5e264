"""Tagged scripts to audio, with every base tag audible.

Emotions change rate, pitch, range and loudness; whispers, shouts and stammers change the
voice; laughs, sighs, gasps, clears throat and crying are sounds; a pause is silence. An
emotion or a delivery lasts from its tag to the end of the sentence. Times are exact because
the clip is assembled here.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import soxr

from ..errors import RowError
from ..text import tags as tag_text
from ..units import SAMPLE_RATE_HZ, samples_to_seconds, seconds_to_samples
from .espeak import Espeak
from .sounds import SOUNDS

_BASE_LEVEL_DB = -27.0
_SENTENCE = re.compile(r"[^.!?]*[.!?]+|[^.!?]+$")


@dataclass(frozen=True)
class Voice:
    """An espeak-ng voice. `pitch`: 0 to 99. `pitch_hz`: its approximate pitch, for the non-verbal sounds."""

    name: str
    whisper_name: str
    pitch: int
    pitch_hz: float


VOICES = (
    Voice("en-us+m3", "en-us+whisper", 42, 105.0),
    Voice("en-us+f2", "en-us+whisperf", 52, 190.0),
    Voice("en-us", "en-us+whisper", 48, 115.0),
    Voice("en+m7", "en+whisper", 50, 120.0),
    Voice("en-us+f4", "en-us+whisperf", 48, 175.0),
    Voice("en+f1", "en+whisperf", 50, 180.0),
)


@dataclass(frozen=True)
class Style:
    """How a stretch of text is spoken: a factor on the rate, offsets on pitch and loudness, the pitch range
    (0 flat to 99 wide; 50 is the voice's own), and how much the signal is saturated."""

    rate: float = 1.0
    pitch: int = 0
    pitch_range: int = 50
    gain_db: float = 0.0
    drive: float = 0.0


EMOTION_STYLES = {
    "excited": Style(rate=1.30, pitch=28, pitch_range=99, gain_db=4),
    "sad": Style(rate=0.72, pitch=-22, pitch_range=8, gain_db=-10),
    "angry": Style(rate=1.18, pitch=-14, pitch_range=85, gain_db=9),
    "nervous": Style(rate=1.48, pitch=18, pitch_range=15, gain_db=-8),
    "calm": Style(rate=0.78, pitch=2, pitch_range=18, gain_db=-2),
    "frustrated": Style(rate=0.86, pitch=-10, pitch_range=95, gain_db=6),
}
DELIVERY_STYLES = {
    "whispers": Style(pitch_range=40, gain_db=-9),
    "shouts": Style(rate=0.95, pitch=34, pitch_range=70, gain_db=13, drive=4.0),
    "stammers": Style(),
}


@dataclass
class SpokenClip:
    """`samples`: mono float32 at 16 kHz. `words`: {word, start_s, end_s}; `events`: {tag, start_s,
    end_s}; `phonemes`: {phoneme, start_s}, for training the tiny base only."""

    samples: np.ndarray
    words: list[dict] = field(default_factory=list)
    events: list[dict] = field(default_factory=list)
    phonemes: list[dict] = field(default_factory=list)


class Synthesizer:
    """Speaks tagged scripts. The same (text, voice, seed) gives the same samples. `emotions`: the style of each emotion."""

    def __init__(self, rates_wpm: tuple[int, int] = (160, 190), emotions: Mapping[str, Style] = EMOTION_STYLES):
        self._espeak = Espeak()
        self._rates_wpm, self._emotions = rates_wpm, emotions

    def render(self, tagged_text: str, voice: Voice, seed: int) -> SpokenClip:
        """Raises RowError if there is nothing to speak or a tag cannot be rendered."""
        rng = np.random.default_rng(seed)
        rate_wpm = int(rng.integers(*self._rates_wpm, endpoint=True))
        assembly = _Assembly(self._espeak, voice, rng, rate_wpm, self._emotions)
        pieces = tag_text.parse(tagged_text)
        if not pieces:
            raise RowError("empty text", fix="write at least one word or tag")
        for piece in pieces:
            if piece.kind == "text":
                assembly.speak_text(piece.value)
            else:
                assembly.take_tag(piece.value)
        return assembly.finish()


class _Assembly:
    """A clip under construction: its pieces of audio and the current position in samples."""

    def __init__(
        self, espeak: Espeak, voice: Voice, rng: np.random.Generator, rate_wpm: int, emotions: Mapping[str, Style]
    ):  # fmt: skip
        self._espeak, self._voice, self._rng, self._rate_wpm, self._emotions = espeak, voice, rng, rate_wpm, emotions
        self._level_db = _BASE_LEVEL_DB + rng.uniform(-1.5, 1.5)
        self._pitch = voice.pitch + int(rng.integers(-4, 5))
        self._parts: list[np.ndarray] = []
        self._position = 0
        self._clip = SpokenClip(np.zeros(0, np.float32))
        self._emotion: str | None = None
        self._delivery: str | None = None
        self._waiting: list[str] = []  # tags whose stretch has not been spoken yet
        self._silence(rng.uniform(0.1, 0.25))

    def take_tag(self, tag: str) -> None:
        if tag in self._emotions:
            self._emotion = tag
            self._waiting.append(tag)
        elif tag in DELIVERY_STYLES:
            self._delivery = tag
            self._waiting.append(tag)
        elif tag in SOUNDS:
            sound = SOUNDS[tag](self._rng, self._voice.pitch_hz)
            self._event(tag, self._append(_to_level(sound, self._level_db + self._rng.uniform(-3, 1))))
            self._silence(self._rng.uniform(0.08, 0.15))
        elif tag == tag_text.PAUSE_TAG:
            self._event(tag, self._silence(self._rng.uniform(0.95, 1.5)))
        else:
            raise RowError(f"[{tag}] cannot be rendered", fix=f"known tags: {', '.join(tag_text.BASE_TAGS)}")

    def speak_text(self, text: str) -> None:
        for match in _SENTENCE.finditer(text):
            sentence = match.group().strip()
            if any(letter.isalnum() for letter in sentence):
                self._speak(sentence)
            if sentence.endswith((".", "!", "?")):
                self._emotion = self._delivery = None
                self._silence(self._rng.uniform(0.15, 0.25))

    def finish(self) -> SpokenClip:
        for tag in self._waiting:
            raise RowError(f"no words follow [{tag}]", fix="put it before the words that it describes")
        self._silence(self._rng.uniform(0.1, 0.25))
        floor_db = self._rng.uniform(-72, -60)
        samples = np.concatenate(self._parts)
        samples = samples + _to_level(self._rng.standard_normal(len(samples)), floor_db)
        self._clip.samples = np.clip(samples, -1.0, 1.0).astype(np.float32)
        return self._clip

    def _speak(self, text: str) -> None:
        emotion = self._emotions.get(self._emotion, Style())
        delivery = DELIVERY_STYLES.get(self._delivery, Style())
        both = self._emotion is not None and self._delivery is not None
        utterance = self._espeak.speak(
            text,
            voice=self._voice.whisper_name if self._delivery == "whispers" else self._voice.name,
            rate_wpm=round(self._rate_wpm * emotion.rate * delivery.rate),
            pitch=int(np.clip(self._pitch + emotion.pitch + delivery.pitch, 0, 99)),
            pitch_range=emotion.pitch_range if self._emotion else delivery.pitch_range,
            seed=int(self._rng.integers(2**31)),
        )
        samples = soxr.resample(utterance.samples, utterance.rate_hz, SAMPLE_RATE_HZ)
        scale = SAMPLE_RATE_HZ / utterance.rate_hz
        starts = [round(start * scale) for start in utterance.word_starts]
        phonemes = [(round(start * scale), name) for start, name in utterance.phonemes]
        samples, starts, phonemes = _trim_tail(samples, starts, phonemes)
        if self._delivery == "stammers":
            samples, starts, phonemes, repeated = _stammer(samples, starts, phonemes, self._rng)
        gain_db = emotion.gain_db + delivery.gain_db * (0.7 if both else 1.0)
        samples = _to_level(samples, self._level_db + gain_db)
        if delivery.drive:
            samples = np.tanh(delivery.drive * samples) / np.tanh(delivery.drive)
        begin, end = self._append(samples.astype(np.float32))
        self._note_words(text, [begin + start for start in starts], end)
        self._clip.phonemes += [{"phoneme": name, "start_s": samples_to_seconds(begin + start)} for start, name in phonemes]
        for tag in self._waiting:
            span = (begin + repeated[0], begin + repeated[1]) if tag == "stammers" else (begin, end)
            self._event(tag, span)
        self._waiting = []

    def _note_words(self, text: str, starts: list[int], end: int) -> None:
        words = [word.strip('.,!?;:"') for word in text.split()]
        words = [word for word in words if word]
        if len(starts) != len(words):  # numbers and abbreviations are several spoken words
            begin = starts[0] if starts else self._position
            starts = [begin + (end - begin) * index // len(words) for index in range(len(words))]
        for word, start, stop in zip(words, starts, [*starts[1:], end], strict=True):
            self._clip.words.append({"word": word, "start_s": samples_to_seconds(start), "end_s": samples_to_seconds(stop)})

    def _event(self, tag: str, span: tuple[int, int]) -> None:
        self._clip.events.append({"tag": tag, "start_s": samples_to_seconds(span[0]), "end_s": samples_to_seconds(span[1])})

    def _append(self, samples: np.ndarray) -> tuple[int, int]:
        begin = self._position
        self._parts.append(samples)
        self._position += len(samples)
        return begin, self._position

    def _silence(self, seconds: float) -> tuple[int, int]:
        return self._append(np.zeros(seconds_to_samples(seconds), np.float32))


def _to_level(samples: np.ndarray, level_db: float) -> np.ndarray:
    rms = float(np.sqrt(np.mean(np.square(samples, dtype=np.float64)))) if len(samples) else 0.0
    return samples * (10 ** (level_db / 20) / rms) if rms > 0 else samples


def _trim_tail(samples: np.ndarray, starts: list[int], phonemes: list[tuple[int, str]]):
    """Cut the up to half a second of silence with which espeak ends a sentence: only [pause] should be a pause."""
    loud = np.flatnonzero(np.abs(samples) > 1e-3)
    end = min(len(samples), int(loud[-1]) + 400) if len(loud) else len(samples)
    return samples[:end], [min(start, end) for start in starts], [(at, name) for at, name in phonemes if at < end]


def _stammer(samples, starts, phonemes, rng: np.random.Generator):
    """Put the onset of the first word before it three or four times, with short gaps: "w- w- w- want"."""
    begin = starts[0] if starts else 0
    onset = samples[begin : begin + seconds_to_samples(rng.uniform(0.12, 0.16))]
    fade = np.minimum(1.0, np.linspace(5.0, 0.0, len(onset)))
    gap = np.zeros(seconds_to_samples(rng.uniform(0.05, 0.08)), np.float32)
    insert = np.concatenate([np.concatenate([onset * fade, gap]) for _ in range(int(rng.integers(3, 5)))])
    shifted = len(insert)
    samples = np.concatenate([samples[:begin], insert, samples[begin:]])
    starts = starts[:1] + [start + shifted for start in starts[1:]]
    phonemes = [(at + shifted if at > begin else at, name) for at, name in phonemes]
    return samples, starts, phonemes, (begin, begin + shifted)
