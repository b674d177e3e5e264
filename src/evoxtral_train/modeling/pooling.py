"""One vector for each clip: its frozen audio embeddings, pooled over time."""

import numpy as np

from .. import processes
from ..dataset.reader import PackedSplit
from ..progress import progress
from .audio_cache import AudioSource, encoded_batches


def pooled_audio(audio: AudioSource, split: PackedSplit) -> np.ndarray:
    """float32 [clips, 2 × hidden]: mean and standard deviation of a clip's projected audio over the tokens that cover its
    sound, without the silence before and after. `audio` must reach to the end of every clip. Each process pools its
    share; all get the whole array."""
    sounds = [split.layout.sound(split.clip(index)) for index in range(len(split))]
    ends = [end for _, end in sounds]
    mine, pooled = list(processes.share(range(len(split)))), []
    with progress("pooling", len(mine), "clips") as bar:
        for batch, embeddings in encoded_batches(audio, mine, ends):
            for index, row in zip(batch, embeddings.float().numpy(), strict=True):
                heard = row[slice(*sounds[index])]
                pooled.append((index, np.concatenate([heard.mean(0), heard.std(0)])))
            bar.advance(len(batch))
    vectors = dict(processes.gather(pooled))
    return np.stack([vectors[index] for index in range(len(split))])
