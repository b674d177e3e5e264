"""Yardsticks for systems: `chance` ignores the audio, `probe` is a linear classifier on the frozen embeddings.

Together they show how much of the audible information a system has learned. docs/evaluation.md describes both.
"""

from functools import cache

import numpy as np
import torch

from .. import processes
from ..config.evaluation import EvalConfig, ProbeConfig
from ..dataset.reader import PackedSplit, has_split
from ..decoding.greedy import Written
from ..errors import UsageError
from ..families.base import Network
from ..modeling.bases import Base, open_whole_clips
from ..modeling.pooling import pooled_audio
from ..modeling.probe import LabelledClips, Probe
from ..scoring.chance import best_constant_answer
from ..text.tags import find_tags, format_tags

TRAIN, VALIDATION = "train", "validation"


class PooledClips:
    """The clips of a packed dataset, each as one vector; a split is pooled once. `network`: the base, without an adapter."""

    def __init__(self, config: EvalConfig | ProbeConfig, network: Network, base: Base):
        self._config, self._network, self._base = config, network, base
        self.vectors = cache(self._pool)

    def _pool(self, name: str) -> np.ndarray:
        """float32 [clips, features]; reads no text."""
        split = PackedSplit(self._config.dataset, name)
        pooled = pooled_audio(open_whole_clips(self._config, self._network, self._base, split), split)
        self._network.place_audio_path(torch.device("cpu"))
        return pooled

    def labelled(self, name: str) -> LabelledClips:
        examples = PackedSplit(self._config.dataset, name).examples
        return LabelledClips(self.vectors(name), [set(find_tags(example.text)) for example in examples])


def check_probe(config: EvalConfig | ProbeConfig) -> None:
    """Raises UsageError if the dataset has no clips to fit a probe on, or if they are also the clips to measure."""
    if not has_split(config.dataset, TRAIN):
        raise UsageError(
            f"the probe is fitted on the split {TRAIN!r}, which has no rows here", where=str(config.dataset),
            fix="use a dataset that was packed with its training clips; in an evaluation you can also remove the system",
        )  # fmt: skip
    if config.split == TRAIN:
        raise UsageError(f"the probe is fitted on {TRAIN!r} itself", where="split", fix="measure another split, or leave it out")


def chance_answer(split: PackedSplit) -> str:
    """The text written for every clip: see `best_constant_answer`."""
    return format_tags(best_constant_answer([example.text for example in split.labelled_examples()]))


def probe_answers(
    config: EvalConfig, network: Network, base: Base, split: PackedSplit
) -> tuple[Probe, dict[str, Written]]:
    """The probe, and its output for each clip of `split`, by id. `network`: the base, without an adapter."""
    clips = PooledClips(config, network, base)
    probe = fit_probe(config, clips, split.split)
    return probe, dict(zip(split.index_of, probe_writes(probe, clips.vectors(split.split)), strict=True))


def fit_probe(config: EvalConfig | ProbeConfig, clips: PooledClips, measured: str) -> Probe:
    """Fit on the dataset's training clips. The regularisation is chosen on its validation clips, unless there are none or they
    are also the clips to measure."""
    train = clips.labelled(TRAIN)
    if measured == VALIDATION or not has_split(config.dataset, VALIDATION):
        return processes.first(lambda: Probe.fit(train))
    validation = clips.labelled(VALIDATION)
    return processes.first(lambda: Probe.fit_best(train, validation))


def probe_writes(probe: Probe, vectors: np.ndarray) -> list[Written]:
    """For each clip the tags that the probe hears, with their probabilities as confidences."""
    heard = probe.heard(vectors)
    return [Written(format_tags(list(tags)), confidences=[round(value, 4) for value in tags.values()]) for tags in heard]
