"""Open a base with its adapter and its audio: the first step of every command that runs a model."""

import os
from dataclasses import dataclass
from pathlib import Path

import torch

from ..config.evaluation import CalibrateConfig, EvalConfig
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
from ..files import fingerprint_files
from .adapters import Adapter, check_base, find_adapter, load_adapter
from .audio_cache import AudioSource, CachedAudio, LiveAudio, Stage, cache_bytes, cached_stage, open_cache
from .weights import non_finite


def pick_device(device: str) -> torch.device:
    """`auto` is CUDA if available; each of several processes takes its own GPU. Raises UsageError
    for a device that is not available."""
    own = int(os.environ.get("LOCAL_RANK", "0"))
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda":
        device = f"cuda:{own}"
    try:
        torch.empty(0, device=device).cpu()  # a tensor on `meta` cannot be read back
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        fix = "set model.device to auto" if own == 0 else "start as many processes as there are GPUs, or set model.device to cpu"
        raise UsageError(f"device {device!r} cannot be used: {reason}", fix=fix) from None
    return torch.device(device)


@dataclass(frozen=True)
class Base:
    """A checkpoint, opened without its weights, and its fingerprint."""

    family: Family
    fingerprint: str


def open_base(model: Model) -> Base:
    """Raises UsageError when the base is neither a folder nor in the hub's cache and cannot be downloaded, or when
    `model.family` is not its family."""
    folder = resolve_base(model.base, model.revision)
    family_for(str(folder), None, model.family)
    return Base(open_family(folder), base_fingerprint(folder))


def open_base_of(split: PackedSplit, model: Model) -> Base:
    """`open_base`, for a dataset. Raises UsageError when the dataset was packed for another base."""
    base = open_base(model)
    if processor_fingerprint(base.family.folder) != split.processor_fingerprint:
        raise UsageError(
            f"this dataset was packed with another processor, not with that of {model.base}",
            where=str(split.folder),
            fix="pack it again with `base` set to this model",
        )
    return base


def describe_model(model: Model) -> tuple[Network, str]:
    """The model's shape on the meta device, without weights, and the source of the shape.

    A checkpoint that is not on disk is described by the published model's default config.
    """
    family, folder = family_for(model.base, model.revision, model.family)
    source = "the checkpoint's config" if folder else "the class's default config (the checkpoint is not here)"
    return family.describe(folder), source


def open_adapter(path: Path, base: Base, model: Model) -> Adapter:
    adapter = find_adapter(path)
    check_base(adapter, base.fingerprint, model.base)
    return adapter


def load_network(base: Base, dtype: str, adapter: Adapter, trainable: bool = False) -> Network:
    """The base with an adapter, or the full model in the base's place, in evaluation mode on the CPU. `trainable`: for LoRA,
    whether its weights can be trained on. Raises UsageError when it does not fit the base."""
    if adapter.method == "lora":
        return load_adapter(base.family.load(dtype), adapter, trainable)
    family = open_family(adapter.folder)
    tokenizers = [fingerprint_files([folder / "tekken.json"]) for folder in (family.folder, base.family.folder)]
    if type(family) is not type(base.family) or len(set(tokenizers)) > 1:
        what = f"this full model is of another family or has another tokenizer than {base.family.folder}"
        raise UsageError(what, where=str(adapter.folder), fix="set model.base to the base that it was trained from")
    network = family.load(dtype)
    if found := non_finite(network.model.named_parameters()):
        fix = "train it again with a lower train.learning_rate and --overwrite"
        raise UsageError(f"a model whose weights are not finite: {found}", where=str(adapter.folder), fix=fix)
    network.own_audio_path = True
    return network


def require_method(adapter: Adapter, config: RaftConfig) -> None:
    """RAFT trains with the method of its start: an adapter stays an adapter. Raises UsageError when the config says otherwise."""
    if adapter.method != config.train.method:
        started = "a full model" if adapter.method == "full" else "an adapter"
        what = f"is {config.train.method}, but RAFT would start from {started}, {config.adapter}"
        raise UsageError(what, where="train.method", fix=f"set it to {adapter.method}")


@dataclass(frozen=True)
class Inputs:
    """The inputs of a command that runs a model on the clips of a split: the base, and the adapter to start from. `sources`:
    their folders."""

    split: PackedSplit
    base: Base
    adapter: Adapter
    sources: list[Path]

    @classmethod
    def open(cls, config: RaftConfig, split: PackedSplit) -> "Inputs":
        """Without weights. Raises UsageError when split, base and adapter do not belong together."""
        base = open_base_of(split, config.model)
        adapter = open_adapter(config.adapter, base, config.model)
        require_method(adapter, config)
        return cls(split, base, adapter, [config.dataset, base.family.folder, config.adapter])

    @property
    def fingerprints(self) -> dict[str, str]:
        return {"dataset": self.split.fingerprint, "base": self.base.fingerprint, "adapter": self.adapter.fingerprint}


def open_audio(
    config: SftConfig | RaftConfig | EvalConfig | CalibrateConfig, network: Network, base: Base, split: PackedSplit,
    new_tokens: int = 0,
) -> CachedAudio | None:  # fmt: skip
    """The audio cache of `split`, filled if necessary, or None if the audio path must run; the audio path is
    then put on the device.

    `audio_cache: auto` caches unless the audio tower is trained, decoding may write further than the cache reaches, or the
    cache would be larger than `audio_cache_limit_gb`. In those cases `on` raises UsageError.
    """
    device, stage = pick_device(config.model.device), cached_stage(network)
    if _why_not_cached(config, network, split, stage, new_tokens):
        network.place_audio_path(device)
        return None
    cache = open_cache(network, device, base.fingerprint, split, stage)
    if stage == "states":
        network.audio_parts[1].to(device)
    return cache


def describe_cache(
    config: SftConfig | RaftConfig | EvalConfig | CalibrateConfig, network: Network, split: PackedSplit, new_tokens: int = 0
) -> str:
    """What `open_audio` will do with this split. `network`: with what is trained; it may be on the meta device. Raises UsageError
    as `open_audio` does."""
    stage = cached_stage(network)
    if reason := _why_not_cached(config, network, split, stage, new_tokens):
        return f"none: {reason}"
    what = " (what enters the projector, which is trained)" if stage == "states" else ""
    return f"{cache_bytes(network, split, stage) / 1e9:.1f} GB on disk{what}"


def _why_not_cached(
    config: SftConfig | RaftConfig | EvalConfig | CalibrateConfig, network: Network, split: PackedSplit, stage: Stage | None,
    new_tokens: int,
) -> str | None:  # fmt: skip
    """None if the audio of `split` is cached. Raises UsageError if it cannot be although `audio_cache` is on."""
    if config.audio_cache == "off":
        return "audio_cache is off"
    obstacle = _obstacle(config, network, split, stage, new_tokens)
    if obstacle and config.audio_cache == "on":
        raise UsageError(obstacle, where="audio_cache", fix="set it to auto")
    return obstacle


def _obstacle(
    config: SftConfig | RaftConfig | EvalConfig | CalibrateConfig, network: Network, split: PackedSplit, stage: Stage | None,
    new_tokens: int,
) -> str | None:  # fmt: skip
    """Why the audio of `split` cannot be cached; None if it can."""
    if network.own_audio_path:
        return "a full model has an audio path of its own, and the cache is the base's"
    if stage is None:
        return "the audio tower is trained, or has an adapter, so its output cannot be cached"
    if isinstance(config, SftConfig) and config.augmentation.probability and split.split == "train":
        return "augmentation changes the audio in every epoch, so the audio tower's output cannot be cached"
    room = split.layout.room_tokens
    if new_tokens > room and split.layout.hears_while_writing:
        return f"the cache reaches {room} tokens past the prompt, but decoding may write {new_tokens}"
    limit_gb, size_gb = config.audio_cache_limit_gb, cache_bytes(network, split, stage) / 1e9
    if limit_gb is not None and size_gb > limit_gb:
        return f"the cache of {split.split} would take {size_gb:.1f} GB, more than audio_cache_limit_gb: {limit_gb:g}"
    return None


def open_whole_clips(
    config: SftConfig | RaftConfig | EvalConfig | CalibrateConfig, network: Network, base: Base, split: PackedSplit
) -> AudioSource:
    """The clips' audio up to their ends: read back from the cache, or computed if the cache ends before the clips do."""
    cached = None
    if split.layout.hears_whole_clip:
        cached = open_audio(config, network, base, split)
    else:
        network.place_audio_path(pick_device(config.model.device))
    return cached or LiveAudio(network, split)


def open_for_decoding(
    config: RaftConfig | EvalConfig | CalibrateConfig, network: Network, base: Base, split: PackedSplit, new_tokens: int
) -> AudioSource:
    """The clips' audio, read back or computed. Puts the model on its device."""
    cached = open_audio(config, network, base, split, new_tokens)
    network.place_language_model(pick_device(config.model.device))
    return cached or LiveAudio(network, split)
