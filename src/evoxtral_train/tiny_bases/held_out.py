"""How well a tiny base transcribes sentences that it was not trained on."""

from collections.abc import Callable

import numpy as np

from ..config.training import TinyBaseConfig
from ..decoding.decoder import Decoding, Request, decode
from ..decoding.sampling import Sampling
from ..families.base import ClipSize, Family, Layout, Network
from ..modeling.audio_cache import LiveAudio
from ..records import Prediction
from ..scoring.metrics import evaluate
from ..synthesis.scripts import Grammar, draw_scripts
from ..synthesis.synthesizer import VOICES, Synthesizer
from ..text.tags import find_tags, strip_tags


class _Mels:
    """Mels in memory, for the decoder."""

    def __init__(self, family: Family, layout: Layout):
        self._family, self._layout, self._clips = family, layout, []

    def add(self, samples: np.ndarray, clip: ClipSize) -> None:
        mel = self._family.mel(samples, self._layout.mel_frames(clip, clip.row_tokens))
        self._clips.append((clip, *self._family.trim_silence(mel)))

    def mel_of(self, index: int, tokens: int) -> np.ndarray:
        clip, kept, start = self._clips[index]
        return self._family.restore_silence(kept, start, self._layout.mel_frames(clip, tokens))


def transcribe_held_out(
    config: TinyBaseConfig, network: Network, family: Family, layout: Layout, measure: Callable[[Family, int], ClipSize]
) -> dict:
    """WER of greedy transcription in the base's own `layout` on sentences of the grammar's test share, half of the clips plain
    and half with every kind of tag in their voice."""
    synthesizer, mels, requests, room_tokens = Synthesizer(), _Mels(family, layout), [], 0
    scripts = draw_scripts(Grammar.load(config.grammar), {"test": config.held_out_clips}, 0.5, config.seed + 1)
    for index, script in enumerate(scripts):
        samples = synthesizer.render(script.text, VOICES[index % len(VOICES)], seed=config.seed + index).samples
        clip = measure(family, len(samples))
        mels.add(samples, clip)
        requests.append(Request.of(script.id, layout, clip, index))
        room_tokens = max(room_tokens, clip.row_tokens - layout.room_start(clip))
    heard = {}
    decoding = Decoding(candidates=1, sampling=Sampling(), max_new_tokens=room_tokens, batch_tokens=8192)
    for completions in decode(network, LiveAudio(network, mels), requests, decoding):
        heard |= {each.utterance_id: family.tokenizer.decode(each.token_ids) for each in completions}
    rows = [Prediction(script.id, strip_tags(script.text), strip_tags(heard[script.id])) for script in scripts]
    plain = [row for row, script in zip(rows, scripts, strict=True) if not find_tags(script.text)]
    measures = {"held_out_clips": len(rows), "plain_clips": len(plain)}
    for name, chosen in (("wer", rows), ("plain_wer", plain)):
        wer = evaluate(chosen, with_words=True)["wer"]["micro"]
        measures |= {name: wer["value"], f"{name}_low": wer["low"], f"{name}_high": wer["high"]}
    return measures
