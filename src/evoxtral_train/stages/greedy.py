"""Greedy decoding of a split with the base and adapters: what `eval` measures and `calibrate` fits thresholds on."""

from functools import partial
from pathlib import Path

import torch

from ..config.evaluation import CalibrateConfig, EvalConfig
from ..dataset.reader import PackedSplit
from ..decoding.decoder import Decoding, requests_of
from ..decoding.greedy import Written, write_clips
from ..decoding.known_tags import KnownTags
from ..families.base import Layout, Network
from ..modeling.adapters import Adapter, load_adapter
from ..modeling.audio_cache import AudioSource
from ..modeling.bases import Base, load_network, open_for_decoding, open_whole_clips, pick_device
from ..progress import progress

BASE = "base"


def decode_greedily(
    config: EvalConfig | CalibrateConfig, network: Network | None, base: Base, split: PackedSplit, paths: list[Path | None],
    adapters: dict[Path, Adapter],
) -> dict[Path | None, dict[str, Written]]:  # fmt: skip
    """Each adapter on every clip of the split that has a text, this process's share, gathered from all: adapter path (None: the
    base) -> clip id -> output. `network`: the base; not used if there is no path."""
    if not paths:
        return {}
    written = {}
    with progress("decoding", len(paths) * int(split.labelled.sum()), "clips") as bar:
        for path in paths:
            system = _system(config, network, base, adapters[path]) if path else network
            audio = _audio(config, path, system, base, split)
            known = None
            if path and config.decode.known_tags_only:
                known = KnownTags(base.family.tokenizer, split.tags, system.device)
            decoding = Decoding.greedy(config.decode, known, base.family.default_new_tokens)
            layout = _layout(path, base, split)
            requests = (request for request in requests_of(split, layout) if split.labelled[request.index])
            on_clips = partial(bar.advance, note=str(path or BASE))
            written[path] = write_clips(system, audio, requests, decoding, base.family.tokenizer, split, layout, on_clips)
            if path and adapters[path].method == "lora":
                network = network.around(system.model.unload())
            del system, audio  # a full model is freed before the next system is loaded
    return written


def _system(config: EvalConfig | CalibrateConfig, network: Network, base: Base, adapter: Adapter) -> Network:
    if adapter.method == "lora":
        return load_adapter(network, adapter)
    for place in (network.place_audio_path, network.place_language_model):  # a GPU need not hold two models
        place(torch.device("cpu"))
    return load_network(base, config.model.dtype, adapter)


def _audio(
    config: EvalConfig | CalibrateConfig, path: Path | None, network: Network, base: Base, split: PackedSplit
) -> AudioSource:
    """The cache may end before the clips do, so the base without an adapter reads whole clips."""
    if path is None and split.target != "tags" and not split.layout.hears_whole_clip:
        network.place_language_model(pick_device(config.model.device))
        return open_whole_clips(config, network, base, split)
    return open_for_decoding(config, network, base, split, config.decode.max_new_tokens or base.family.default_new_tokens)


def _layout(path: Path | None, base: Base, split: PackedSplit) -> Layout:
    """That of the split; but if words are measured, the base without an adapter writes in its own layout."""
    if path is not None or split.target == "tags":
        return split.layout
    return base.family.own_layout(split.layout.room_tokens)
