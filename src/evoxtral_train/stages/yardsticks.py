"""Yardsticks for systems: `chance` ignores the audio, `probe` is a linear classifier on the frozen embeddings.

Together they show how much of the audible information a system has learned. docs/evaluation.md describes both.
"""

import torch

from .. import processes
from ..config.evaluation import EvalConfig
from ..config.training import RaftConfig
from ..dataset.reader import PackedSplit, has_split
from ..errors import UsageError
from ..families.base import Network
from ..modeling.bases import Base, open_whole_clips
from ..modeling.pooling import pooled_audio
from ..modeling.probe import LabelledClips, Probe
from ..scoring.chance import best_constant_answer
from ..text.tags import find_tags, format_tags

TRAIN, VALIDATION = "train", "validation"


def check_probe(config: EvalConfig) -> None:
    """Raises UsageError if the dataset has no clips to fit a probe on, or if they are also the clips to measure."""
    if not has_split(config.dataset, TRAIN):
        raise UsageError(
            f"the probe is fitted on the split {TRAIN!r}, which has no rows here", where=str(config.dataset),
            fix="remove the system, or evaluate a dataset that was packed with its training clips",
        )  # fmt: skip
    if config.split == TRAIN:
        raise UsageError(f"the probe is fitted on {TRAIN!r} itself", where="split", fix="measure another split, or leave it out")


def chance_answer(split: PackedSplit) -> str:
    """The text written for every clip: see `best_constant_answer`."""
    return format_tags(best_constant_answer([example.text for example in split.labelled_examples()]))


def probe_answers(
    config: EvalConfig, network: Network, base: Base, split: PackedSplit
) -> tuple[Probe, dict[str, dict[str, float]]]:
    """The probe, and its output for each clip of `split`: id -> tag -> probability. `network`: the base, without an adapter."""
    probe = fit_probe(config, network, base, split.split)
    return probe, dict(zip(split.index_of, probe.heard(_pooled(config, network, base, split)), strict=True))


def fit_probe(config: EvalConfig | RaftConfig, network: Network, base: Base, measured: str) -> Probe:
    """Fit on the dataset's training clips. The regularisation is chosen on its validation clips, unless there are none or they
    are also the clips to measure."""
    train = _labelled(config, network, base, TRAIN)
    if measured == VALIDATION or not has_split(config.dataset, VALIDATION):
        return processes.first(lambda: Probe.fit(train))
    validation = _labelled(config, network, base, VALIDATION)
    return processes.first(lambda: Probe.fit_best(train, validation))


def _labelled(config: EvalConfig | RaftConfig, network: Network, base: Base, name: str) -> LabelledClips:
    split = PackedSplit(config.dataset, name)
    return LabelledClips(_pooled(config, network, base, split), [set(find_tags(example.text)) for example in split.examples])


def _pooled(config: EvalConfig | RaftConfig, network: Network, base: Base, split: PackedSplit):
    pooled = pooled_audio(open_whole_clips(config, network, base, split), split)
    network.place_audio_path(torch.device("cpu"))
    return pooled
