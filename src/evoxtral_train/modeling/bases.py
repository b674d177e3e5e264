"""Opening a base with its adapter and its audio: what every command that runs a model begins with."""

import os
from dataclasses import dataclass
from pathlib import Path

import torch

from ..config.evaluation import EvalConfig
from ..config.sections import Model
from ..config.training import RaftConfig, SftConfig
from ..dataset.reader import PackedSplit
from ..errors import UsageError
from ..families.base import Family, Network
from ..families.checkpoint import (
    base_fingerprint,
    family_for,
    open_family,
    processor_fingerprint,
    resolve_base,
)
from .adapters import Adapter, check_base, find_adapter, trains_audio_path
from .audio_cache import AudioSource, CachedAudio, LiveAudio, open_cache


def pick_device(device: str) -> torch.device:
    """`auto` is CUDA where there is one; of several processes each takes its own GPU. Raises UsageError
    for a device that is not here."""
    own = int(os.environ.get("LOCAL_RANK", "0"))
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda":
        device = f"cuda:{own}"
    try:
        torch.empty(0, device=device).cpu()  # `meta` makes what cannot be read back
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        fix = "set model.device to auto" if own == 0 else "start as many processes as there are GPUs, or set model.device to cpu"
        raise UsageError(f"device {device!r} cannot be used: {reason}", fix=fix) from None
    return torch.device(device)


@dataclass(frozen=True)
class Base:
    """A checkpoint, opened without its weights, and what identifies it."""

    family: Family
    fingerprint: str


def open_base(model: Model) -> Base:
    """Raises UsageError when the base is neither here nor in the hub's cache and cannot be downloaded."""
    folder = resolve_base(model.base, model.revision)
    return Base(open_family(folder), base_fingerprint(folder))


def open_base_of(split: PackedSplit, model: Model) -> Base:
    """`open_base`, for a dataset. Raises UsageError when the dataset was packed for another one."""
    folder = resolve_base(model.base, model.revision)
    if processor_fingerprint(folder) != split.processor_fingerprint:
        raise UsageError(
            f"this dataset was packed with another processor than that of {model.base}",
            where=str(split.folder),
            fix="pack it again with `base` set to this model",
        )
    return open_base(model)


def describe_model(model: Model) -> tuple[Network, str]:
    """The model's shape on the meta device, without weights, and where the shape comes from.

    A checkpoint that is not here is described by the published model's default config.
    """
    family, folder = family_for(model.base, model.revision, model.family)
    source = "the checkpoint's config" if folder else "the class's default config (the checkpoint is not here)"
    return family.describe(folder), source


def open_adapter(path: Path, base: Base, model: Model) -> Adapter:
    adapter = find_adapter(path)
    check_base(adapter, base.fingerprint, model.base)
    return adapter


@dataclass(frozen=True)
class Inputs:
    """What a command reads that runs a model on the clips of a split: the base, and the adapter to begin with. `sources`: where
    they lie."""

    split: PackedSplit
    base: Base
    adapter: Adapter
    sources: list[Path]

    @classmethod
    def open(cls, config: RaftConfig, split: PackedSplit) -> "Inputs":
        """Without weights. Raises UsageError when split, base and adapter do not belong together."""
        base = open_base_of(split, config.model)
        adapter = open_adapter(config.adapter, base, config.model)
        return cls(split, base, adapter, [config.dataset, base.family.folder, config.adapter])

    @property
    def fingerprints(self) -> dict[str, str]:
        return {"dataset": self.split.fingerprint, "base": self.base.fingerprint, "adapter": self.adapter.fingerprint}


def open_audio(
    config: SftConfig | RaftConfig | EvalConfig, network: Network, base: Base, split: PackedSplit, new_tokens: int = 0
) -> CachedAudio | None:
    """The audio cache of `split`, filled if it has to be, or None where the audio path must run; it is
    then put on the device.

    `audio_cache: auto` caches unless the adapter on the model reaches into the audio path, or decoding
    may write further than the cache reaches; `on` refuses then.
    """
    device, obstacle = pick_device(config.model.device), None
    if isinstance(config, SftConfig) and config.augmentation.probability:
        obstacle = "augmentation changes the audio in every epoch, so the audio tower's output cannot be cached"
    elif trains_audio_path(network.model):
        obstacle = "this adapter changes the audio path, so its output cannot be cached"
    elif new_tokens > split.layout.room_tokens:
        obstacle = f"the cache reaches {split.layout.room_tokens} tokens past the prompt, but decoding may write {new_tokens}"
    if obstacle and config.audio_cache == "on":
        raise UsageError(obstacle, where="audio_cache", fix="set it to auto")
    if obstacle or config.audio_cache == "off":
        network.place_audio_path(device)
        return None
    return open_cache(network, device, base.fingerprint, split)


def open_whole_clips(config: RaftConfig | EvalConfig, network: Network, base: Base, split: PackedSplit) -> AudioSource:
    """The clips' audio up to their ends: read back from the cache, or computed where the cache ends before the clips do."""
    cached = None
    if split.layout.hears_whole_clip:
        cached = open_audio(config, network, base, split)
    else:
        network.place_audio_path(pick_device(config.model.device))
    return cached or LiveAudio(network, split)


def open_for_decoding(
    config: RaftConfig | EvalConfig, network: Network, base: Base, split: PackedSplit, new_tokens: int
) -> AudioSource:
    """The clips' audio, read back or computed, and the model where it is needed."""
    cached = open_audio(config, network, base, split, new_tokens)
    network.place_language_model(pick_device(config.model.device))
    return cached or LiveAudio(network, split)
