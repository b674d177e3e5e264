"""Greedy decoding of a split with the base and adapters: what `eval` measures and `calibrate` fits thresholds on."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from .. import processes
from ..config.evaluation import CalibrateConfig, EvalConfig
from ..dataset.reader import Example, PackedSplit
from ..decoding.confidences import tag_confidences
from ..decoding.decoder import Completion, Decoding, Request, decode, requests_of
from ..decoding.known_tags import KnownTags
from ..families.base import Network
from ..modeling.adapters import Adapter, load_adapter
from ..modeling.audio_cache import AudioSource
from ..modeling.bases import Base, open_for_decoding, open_whole_clips, pick_device
from ..progress import progress
from ..records import Prediction
from ..text.written import written_text

BASE = "base"


@dataclass(frozen=True)
class Written:
    """A system's output for a clip. `tags_written`: see `Prediction.written`."""

    text: str
    tags_written: list[dict] | None = None
    confidences: list[float] | None = None

    def prediction_of(self, example: Example) -> Prediction:
        """With the reference of the clip that it was written for."""
        return Prediction(
            example.id, example.text, self.text, example.timed_events, self.tags_written, self.confidences, example.speaker
        )


def decode_greedily(
    config: EvalConfig | CalibrateConfig, network: Network | None, base: Base, split: PackedSplit, paths: list[Path | None],
    adapters: dict[Path, Adapter],
) -> dict[Path | None, dict[str, Written]]:  # fmt: skip
    """Each adapter on every clip of the split, this process's share, gathered from all: adapter path (None: the base) -> clip id
    -> output. `network`: the base; not used if there is no path."""
    if not paths:
        return {}
    written = {}
    with progress("decoding", len(paths) * len(split), "clips") as bar:
        for path in paths:
            system = load_adapter(network, adapters[path]) if path else network
            audio = _audio(config, path, system, base, split)
            known = None
            if path and config.decode.known_tags_only:
                known = KnownTags(base.family.tokenizer, split.tags, system.device)
            decoding = Decoding.greedy(config.decode, known, base.family.default_new_tokens)
            requests, texts = processes.share(_requests(path, base, split)), []
            for completions in decode(system, audio, requests, decoding):
                texts += [(each.utterance_id, _answer(each, base, split)) for each in completions]
                bar.advance(processes.count() * len(completions), note=str(path or BASE))
            written[path] = dict(processes.gather(texts))
            if path:
                network = network.around(system.model.unload())
    return written


def _audio(
    config: EvalConfig | CalibrateConfig, path: Path | None, network: Network, base: Base, split: PackedSplit
) -> AudioSource:
    """The cache may end before the clips do, so the base without an adapter reads whole clips."""
    if path is None and split.target != "tags" and not split.layout.hears_whole_clip:
        network.place_language_model(pick_device(config.model.device))
        return open_whole_clips(config, network, base, split)
    new_tokens = config.decode.max_new_tokens or base.family.default_new_tokens
    return open_for_decoding(config, network, base, split, new_tokens)


def _requests(path: Path | None, base: Base, split: PackedSplit) -> Iterable[Request]:
    """In the layout of the split; but if words are measured, the base without an adapter writes in its own layout."""
    if path is not None or split.target == "tags":
        return requests_of(split)
    return requests_of(split, base.family.own_layout(split.layout.room_tokens))


def _answer(completion: Completion, base: Base, split: PackedSplit) -> Written:
    """The text, the confidence of each tag, and, if positions are times, the time of each tag."""
    return Written(
        written_text(base.family.tokenizer, completion.token_ids),
        split.layout.tag_times(base.family.tokenizer, completion.token_ids),
        tag_confidences(base.family.tokenizer, completion.token_ids, completion.token_logprobs),
    )
