"""What the model stages share: the packed split and the base that it was packed for."""

from dataclasses import dataclass
from pathlib import Path

from ..config.evaluation import EvalConfig
from ..config.sections import Model
from ..config.training import RaftConfig, SftConfig
from ..dataset.reader import PackedSplit
from ..dataset.rows import text_tokenizer
from ..errors import UsageError
from ..families.checkpoint import load_processor, processor_fingerprint, resolve_base
from ..families.realtime.clock import Clock
from ..families.realtime.emission import written_tags
from ..families.realtime.model import base_fingerprint, pick_device, place_audio_path, place_language_model, stock
from .adapters import Adapter, check_base, find_adapter, trains_audio_path
from .audio_cache import AudioSource, CachedAudio, LiveAudio, open_cache


@dataclass(frozen=True)
class Base:
    """The base checkpoint's folder and what identifies it."""

    folder: Path
    fingerprint: str
    processor: object
    clock: Clock

    @property
    def tokenizer(self):
        return text_tokenizer(self.processor)


def open_base(model: Model, split: PackedSplit) -> Base:
    """Raises UsageError when the base cannot be had, or the dataset was packed for another one."""
    folder = resolve_base(model.base, model.revision)
    if processor_fingerprint(folder) != split.processor_fingerprint:
        raise UsageError(
            f"this dataset was packed with another processor than that of {model.base}",
            where=str(split.folder),
            fix="pack it again with `base` set to this model",
        )
    processor = load_processor(folder)
    return Base(folder, base_fingerprint(folder), processor, Clock.of(processor))


def open_audio(
    config: SftConfig | RaftConfig | EvalConfig, model, base: Base, split: PackedSplit, new_tokens: int = 0
) -> CachedAudio | None:
    """The audio cache of `split`, filled if it has to be, or None where the audio tower must run; it is
    then put on the device.

    `audio_cache: auto` caches unless the adapter on `model` reaches into the audio path, or decoding
    may write further than the cache reaches; `on` refuses then.
    """
    device, obstacle = pick_device(config.model.device), None
    if isinstance(config, SftConfig) and config.augmentation.probability:
        obstacle = "augmentation changes the audio in every epoch, so what the audio tower makes of it cannot be cached"
    elif trains_audio_path(model):
        obstacle = "this adapter changes the audio path, so its output cannot be cached"
    elif new_tokens > split.room_tokens:
        obstacle = f"the cache reaches {split.room_tokens} tokens past the prompt, {new_tokens} are asked for"
    if obstacle and config.audio_cache == "on":
        raise UsageError(obstacle, where="audio_cache", fix="set it to auto")
    if obstacle or config.audio_cache == "off":
        place_audio_path(model, device)
        return None
    return open_cache(stock(model), device, base.fingerprint, split, base.clock)


def open_whole_clips(config: RaftConfig | EvalConfig, model, base: Base, split: PackedSplit) -> AudioSource:
    """The clips' audio up to their ends: read back, but computed where the layout is `packed`, whose cache ends soon
    after the prompt."""
    cached = None
    if split.layout == "packed":
        place_audio_path(model, pick_device(config.model.device))
    else:
        cached = open_audio(config, model, base, split)
    return cached or LiveAudio(model, split)


def open_for_decoding(config: RaftConfig | EvalConfig, model, base: Base, split: PackedSplit, new_tokens: int) -> AudioSource:
    """The clips' audio, read back or computed, and the model where it is needed."""
    cached = open_audio(config, model, base, split, new_tokens)
    place_language_model(model, pick_device(config.model.device))
    return cached or LiveAudio(model, split)


def times_of_tags(token_ids: list[int], base: Base, split: PackedSplit) -> list[dict] | None:
    """When each tag was written, where positions are times: in layout `aligned`."""
    if split.layout != "aligned":
        return None
    return written_tags(base.clock, base.tokenizer, base.clock.prompt_tokens, token_ids)


def open_adapter(path: Path, base: Base, model: Model) -> Adapter:
    adapter = find_adapter(path)
    check_base(adapter, base.fingerprint, model.base)
    return adapter
