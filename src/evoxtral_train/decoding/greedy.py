"""A model's greedy output for clips: what `eval` measures, `calibrate` fits thresholds on, and SFT chooses its checkpoint by."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from .. import processes
from ..dataset.reader import Example, PackedSplit
from ..families.base import Layout, Network
from ..modeling.audio_cache import AudioSource
from ..records import Prediction
from ..text.written import written_text
from .confidences import tag_confidences
from .decoder import Completion, Decoding, Request, decode


@dataclass(frozen=True)
class Written:
    """A system's output for a clip. `tags_written`: see `Prediction.written`. `is_cut`: see `Completion.is_cut`."""

    text: str
    tags_written: list[dict] | None = None
    confidences: list[float] | None = None
    is_cut: bool = False

    @classmethod
    def of(cls, completion: Completion, tokenizer, split: PackedSplit, layout: Layout) -> "Written":
        """The text, the confidence of each tag, and, if the split's positions are times, the time of each tag. `layout`: the
        one it was written in, which is not the split's for a base that writes words."""
        return cls(
            written_text(tokenizer, completion.token_ids),
            split.layout.tag_times(tokenizer, completion.token_ids),
            tag_confidences(tokenizer, completion.token_ids, completion.token_logprobs),
            completion.is_cut(layout),
        )

    def prediction_of(self, example: Example) -> Prediction:
        """With the reference of the clip that it was written for."""
        return Prediction(
            example.id, example.text, self.text, example.timed_events, self.tags_written, self.confidences, example.speaker
        )


def write_clips(
    network: Network, audio: AudioSource, requests: Iterable[Request], decoding: Decoding, tokenizer, split: PackedSplit,
    layout: Layout, on_clips: Callable[[int], None] = lambda count: None,
) -> dict[str, Written]:  # fmt: skip
    """Clip id -> output, for clips of the split: each process decodes its share of `requests`, made in `layout`, and gets the
    output for all.
    `on_clips` is called with the number of clips finished since the last call, the other processes' by estimate."""
    written = []
    for completions in decode(network, audio, processes.share(requests), decoding):
        written += [(each.utterance_id, Written.of(each, tokenizer, split, layout)) for each in completions]
        on_clips(processes.count() * len(completions))
    return dict(processes.gather(written))
