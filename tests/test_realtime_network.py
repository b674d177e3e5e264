"""What is Voxtral Realtime's own: its sliding window."""

import torch
from transformers import VoxtralRealtimeForConditionalGeneration

from conftest import TINY_BASE, load_tiny
from evoxtral_train.dataset.reader import PackedSplit
from evoxtral_train.decoding.decoder import Decoding, decode, requests_of
from evoxtral_train.decoding.sampling import Sampling
from evoxtral_train.modeling.audio_cache import LiveAudio


def test_greedy_with_a_short_sliding_window(packed, clock, monkeypatch):
    """Beyond the window nothing is seen, as in the stock class."""
    split, ours = PackedSplit(packed["packed"], "train"), load_tiny()
    stock = VoxtralRealtimeForConditionalGeneration.from_pretrained(TINY_BASE, dtype=torch.float32).eval()
    for each in (ours.model, stock):
        monkeypatch.setattr(each.config.text_config, "sliding_window", 45)
    requests = list(requests_of(split))[:4]
    batches = decode(ours, LiveAudio(ours, split), requests, Decoding(1, Sampling(), max_new_tokens=24, batch_tokens=800))
    found = {each.utterance_id: each for batch in batches for each in batch}
    for request in requests:
        length = min(len(request.prompt) + 24, request.end)
        mel = torch.from_numpy(split.mel_of(request.index, length))[None]
        ids = request.prompt
        with torch.inference_mode():
            while len(ids) < length and (len(ids) == len(request.prompt) or ids[-1] != clock.eos_id):
                logits = stock(
                    input_ids=torch.tensor([ids]), input_features=mel[:, :, : 8 * len(ids)], num_delay_tokens=6, use_cache=False
                ).logits
                ids = [*ids, int(logits[0, -1].argmax())]
        assert found[request.utterance_id].token_ids == [each for each in ids[len(request.prompt) :] if each != clock.eos_id]
