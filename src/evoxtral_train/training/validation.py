"""How a checkpoint is judged: by the validation split's loss and, if the config says so, by what the model writes for its clips.

Clips are decoded greedily with the live weights, as `eval` does it: the same requests, decoder and figures. Decoding draws no
random numbers, so training is the same with and without it. With `wer_regression_max`, a checkpoint that loses more words than
that is worse than any that does not.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

from .. import processes
from ..config.evaluation import Decode
from ..config.training import SftConfig, ValidationDecode
from ..dataset.reader import Example, PackedSplit, has_split
from ..decoding.decoder import Decoding, Request
from ..decoding.greedy import write_clips
from ..decoding.known_tags import KnownTags
from ..errors import UsageError
from ..families.base import Layout, Network
from ..modeling.audio_cache import AudioSource, CachedAudio, LiveAudio
from ..progress import progress
from ..scoring.figures import figures, figures_of
from ..scoring.gates import within
from ..text.normalize import normalize_words
from ..text.tags import find_tags, strip_tags
from .dataset import TrainingSet

SPLIT = "validation"
_HIGHER_IS_BETTER = {"micro_f1"}


class ClipDecoder:
    """The validation clips that are decoded at each checkpoint."""

    def __init__(
        self, config: ValidationDecode, network: Network, tokenizer, split: PackedSplit, cache: CachedAudio | None
    ):  # fmt: skip
        """`network`: the one that is trained. `cache`: the split's audio; None: its audio path runs."""
        self._config, self._network, self._tokenizer, self._split = config, network, tokenizer, split
        self._audio = cache or LiveAudio(network, split)
        self._examples = decoded_examples(config, split)
        requests = (Request.of(each.id, split.layout, split.clip(index), index) for index, each in self._examples.items())
        self._requests = list(requests)
        self.base_wer: float | None = None

    def __len__(self) -> int:
        return len(self._examples)

    def measure(self) -> dict[str, float]:
        """name -> value, of the figures that the target has: the same in all processes, and however many they are. With
        `base_wer`, also how far the WER is above it."""
        self._network.model.eval()  # the Trainer's next step sets training mode again
        split = self._split
        written = write_clips(
            self._network, self._audio, self._requests, self._decoding, self._tokenizer, split, split.layout
        )  # fmt: skip
        found = figures([written[each.id].prediction_of(each) for each in self._examples.values()], split.target)
        return found if self.base_wer is None else found | {"wer_regression": found["wer"] - self.base_wer}

    def measure_base(self, layout: Layout, audio: AudioSource) -> float:
        """The base's WER on the clips. Call it before training, while the network is still the base. `layout`: the base's own.
        `audio`: up to the ends of the clips."""
        self._network.model.eval()
        split, config = self._split, self._config
        requests = [Request.of(each.id, layout, split.clip(index), index) for index, each in self._examples.items()]
        most = config.max_new_tokens or split.layout.room_tokens
        decoding = Decoding.greedy(Decode(max_new_tokens=most, batch_tokens=config.batch_tokens))
        with progress("decoding", len(requests), "clips, base") as bar:
            written = write_clips(self._network, audio, requests, decoding, self._tokenizer, split, layout, bar.advance)
        return figures([written[each.id].prediction_of(each) for each in self._examples.values()], "text")["wer"]

    @cached_property  # once the model is on its device
    def _decoding(self) -> Decoding:
        config, known = self._config, None
        if config.known_tags_only:
            known = KnownTags(self._tokenizer, self._split.tags, self._network.device)
        most = config.max_new_tokens or self._split.layout.room_tokens
        return Decoding.greedy(Decode(max_new_tokens=most, batch_tokens=config.batch_tokens), known)


@dataclass(frozen=True)
class Validation:
    """`rows`: for the loss. `clips`: None if they are not decoded. `measure`: the figure by which checkpoints are compared.
    `wer_regression_max`: None for no limit."""

    rows: TrainingSet
    clips: ClipDecoder | None = None
    measure: str = "loss"
    wer_regression_max: float | None = None

    @property
    def higher_is_better(self) -> bool:
        return self.measure in _HIGHER_IS_BETTER

    def passes(self, figures: Mapping[str, float]) -> bool:
        """Whether a checkpoint keeps to the limit."""
        return self.wer_regression_max is None or within(figures["wer_regression"], self.wer_regression_max)

    def rank(self, figures: Mapping[str, float]) -> tuple[bool, float]:
        """The greater, the better: within the limit by `measure`, above it by the WER."""
        if not self.passes(figures):
            return False, -figures["wer"]
        return True, figures[self.measure] if self.higher_is_better else -figures[self.measure]


def validation_split(config: SftConfig) -> PackedSplit | None:
    """The split to validate on; None if the dataset has none. Raises UsageError if it cannot give what `config.validation` asks
    for."""
    chosen, decode = config.validation, config.validation.decode
    if not has_split(config.dataset, SPLIT):
        if decode is None:
            return None
        fix = "pack some, or set validation.measure to loss, and validation.decode and wer_regression_max to null"
        raise UsageError(f"the dataset has no clips in the split {SPLIT!r} to decode", where="validation", fix=fix)
    split = PackedSplit(config.dataset, SPLIT)
    if decode is not None:
        _check_decode(decode, split)
        if chosen.measure != "loss":
            _check_measure(chosen.measure, decode, split)
        if chosen.wer_regression_max is not None:
            check_words(split, decoded_examples(decode, split).values(), "validation.wer_regression_max")
    return split


def _check_decode(decode: ValidationDecode, split: PackedSplit) -> None:
    room = split.layout.room_tokens
    if split.layout.hears_while_writing and (decode.max_new_tokens or 0) > room:
        raise UsageError(
            f"the dataset leaves room for {room} tokens, where its cached audio ends, but decoding may write "
            f"{decode.max_new_tokens}",
            where="validation.decode.max_new_tokens",
            fix="set it to null, or pack the dataset with a larger layout.room_tokens",
        )
    if processes.is_sharded():
        raise UsageError(
            "under FSDP no process holds the whole model, so none can decode",
            where="validation.decode",
            fix="set it and wer_regression_max to null and validation.measure to loss, and compare the checkpoints with "
            "`evoxtral eval`",
        )


def check_words(split: PackedSplit, examples: Iterable[Example], where: str) -> None:
    """Raises UsageError if the clips have no WER that the setting `where` could limit."""
    what = None
    if split.target == "tags":
        what = "the dataset's target 'tags' has no words, so there is no WER to limit"
    elif not any(normalize_words(strip_tags(example.text)) for example in examples):
        what = "none of the clips to decode has a word, so there is no WER to limit"
    if what:
        raise UsageError(what, where=where, fix="set it to null")


def _check_measure(measure: str, decode: ValidationDecode, split: PackedSplit) -> None:
    """Whether the target has the measure at all, and the decoded clips anything to measure it on."""
    possible = figures_of(split.target)
    if measure not in possible:
        others = " or ".join(name for name in ("loss", "wer", "cer", "micro_f1") if name == "loss" or name in possible)
        lacks = "words" if split.target == "tags" else "tags"
        what = f"the dataset's target {split.target!r} has no {lacks}, so there is no {measure}"
        raise UsageError(what, where="validation.measure", fix=f"set it to {others}")
    texts = [example.text for example in decoded_examples(decode, split).values()]
    if measure == "micro_f1":
        missing = None if any(map(find_tags, texts)) else "tag"
    else:
        missing = None if any(normalize_words(strip_tags(text)) for text in texts) else "word"
    if missing:
        what = f"none of the {len(texts)} clips to decode has a {missing}, so there is no {measure}"
        raise UsageError(what, where="validation.measure", fix="set it to loss, or decode more clips")


def decoded_examples(config: ValidationDecode, split: PackedSplit) -> dict[int, Example]:
    """place in the split -> clip: `config.clips` of them at even distances, or all."""
    count = min(config.clips or len(split), len(split))
    if count == len(split):
        return dict(enumerate(split.examples))
    return {index: split.examples[index] for index in (number * len(split) // count for number in range(count))}
