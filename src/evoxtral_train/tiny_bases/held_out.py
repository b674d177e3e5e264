"""How well a tiny base transcribes sentences that it was not trained on."""

import numpy as np

from ..config.training import TinyBaseConfig
from ..decoding.decoder import Decoding, Request, decode
from ..decoding.sampling import Sampling
from ..families.base import ClipSize, Network
from ..families.realtime.family import Realtime
from ..modeling.audio_cache import LiveAudio
from ..records import Prediction
from ..scoring.metrics import evaluate
from ..synthesis.scripts import Grammar, draw_scripts
from ..synthesis.synthesizer import VOICES, Synthesizer
from ..text.tags import find_tags, strip_tags
from ..units import FRAMES_PER_TOKEN, SILENCE_LOG_MEL, samples_to_tokens
from .pretraining import ROOM_TOKENS


class _Mels:
    """Mels in memory, for the decoder."""

    def __init__(self, mels: list[np.ndarray]):
        self._mels = mels

    def mel_of(self, index: int, tokens: int) -> np.ndarray:
        mel = self._mels[index][:, : tokens * FRAMES_PER_TOKEN]
        return np.pad(mel, ((0, 0), (0, tokens * FRAMES_PER_TOKEN - mel.shape[1])), constant_values=SILENCE_LOG_MEL)


def transcribe_held_out(config: TinyBaseConfig, network: Network, family: Realtime) -> dict:
    """WER of greedy streaming transcription on sentences of the grammar's test share, half of the
    clips plain and half with every kind of tag in their voice."""
    layout, synthesizer = family.own_layout(ROOM_TOKENS), Synthesizer()
    scripts = draw_scripts(Grammar.load(config.grammar), {"test": config.held_out_clips}, 0.5, config.seed + 1)
    mels, requests = [], []
    for index, script in enumerate(scripts):
        samples = synthesizer.render(script.text, VOICES[index % len(VOICES)], seed=config.seed + index).samples
        clip = ClipSize(samples_to_tokens(len(samples)), family.clock.stock_tokens(len(samples), 0) + ROOM_TOKENS)
        mels.append(family.mel(samples, layout.mel_frames(clip, clip.row_tokens)))
        requests.append(Request.of(script.id, layout, clip, index))
    heard = {}
    decoding = Decoding(candidates=1, sampling=Sampling(), max_new_tokens=10_000, batch_tokens=8192)
    for completions in decode(network, LiveAudio(network, _Mels(mels)), requests, decoding):
        heard |= {each.utterance_id: family.tokenizer.decode(each.token_ids) for each in completions}
    rows = [Prediction(script.id, strip_tags(script.text), strip_tags(heard[script.id])) for script in scripts]
    plain = [row for row, script in zip(rows, scripts, strict=True) if not find_tags(script.text)]
    measures = {"held_out_clips": len(rows), "plain_clips": len(plain)}
    for name, chosen in (("wer", rows), ("plain_wer", plain)):
        wer = evaluate(chosen, with_words=True)["wer"]["micro"]
        measures |= {name: wer["value"], f"{name}_low": wer["low"], f"{name}_high": wer["high"]}
    return measures
