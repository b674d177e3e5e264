"""The base's own transcripts as further training rows: an adapter that writes words and tags then keeps the base's words.

Before training, the network is still the base: a new adapter changes nothing. It decodes clips whose target has no tag, greedily
and in the dataset's layout, and each transcript becomes a target, token for token. A transcript without tags on a clip that has
some would teach the adapter to leave them out. The rows are kept in `replay.jsonl`, so that a resumed run has the same ones.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .. import processes
from ..config.evaluation import Decode
from ..config.training import SftConfig, ValidationDecode
from ..dataset.reader import PackedSplit
from ..decoding.decoder import Completion, Decoding, Request, decode
from ..errors import UsageError
from ..families.base import ClipSize, Layout, Network
from ..files import open_atomic
from ..modeling.audio_cache import CachedAudio, LiveAudio
from ..progress import progress
from ..records import dump_row, read_rows
from ..text.tags import find_tags
from ..text.written import written_text
from .dataset import Target


@dataclass(frozen=True)
class ReplayRow:
    """`replay.jsonl`: what the base wrote for a clip. `token_ids` without EOS, which is added and learned."""

    utterance_id: str
    text: str
    token_ids: list[int]


def check_replay(config: SftConfig, split: PackedSplit) -> None:
    """Raises UsageError if the base's transcripts are no targets of the dataset."""
    what, fix = None, "set it to 0"
    if split.target == "tags":
        what = "the dataset's target 'tags' has no words to keep"
    elif not split.layout.base_writes_words:
        what = f"the base does not transcribe in the layout {split.layout.name!r}, so it has no transcripts to replay"
        fix = "set it to 0, or pack the dataset in the base's own layout (docs/data.md)"
    elif not _clips_without_tags(split):
        what = "each clip of the split 'train' has a tag, and a transcript without it would teach the adapter to leave it out"
    elif processes.is_sharded():
        what = "under FSDP no process holds the whole model, so none can decode"
    if what:
        raise UsageError(what, where="replay.share", fix=fix)


def replayed_clips(config: SftConfig, split: PackedSplit) -> list[int]:
    """Places in the split: `replay.share` of its clips, chosen at random from those without tags; all of these if there are
    fewer."""
    places = _clips_without_tags(split)
    count = min(round(config.replay.share * len(split)), len(places))
    return sorted(np.random.default_rng(config.train.seed).permutation(places)[:count].tolist())


def with_replay(
    config: SftConfig, network: Network, tokenizer, split: PackedSplit, cache: CachedAudio | None, path: Path
) -> list[Target]:
    """The split's own targets and the base's transcripts, read from `path` if an earlier call wrote them there. `network`: still
    the base, with the language model on its device."""
    if not processes.first(path.is_file):
        rows = _transcribe(config, network, tokenizer, split, cache)
        processes.first(lambda: _write(path, rows))
    own = [Target(index, each.target_ids, find_tags(each.text)) for index, each in enumerate(split.examples)]
    replayed = [
        Target(split.index_of[row.utterance_id], row.token_ids, [], config.replay.weight) for row in read_rows(path, ReplayRow)
    ]
    return own + replayed


def _clips_without_tags(split: PackedSplit) -> list[int]:
    return [index for index, each in enumerate(split.examples) if not find_tags(each.target_text)]


def _transcribe(
    config: SftConfig, network: Network, tokenizer, split: PackedSplit, cache: CachedAudio | None
) -> list[ReplayRow]:
    """In the order of the split, whatever the number of processes. A transcript that does not end in its row is left out."""
    network.model.eval()
    places, layout = replayed_clips(config, split), split.layout
    requests = [Request.of(split.examples[index].id, layout, split.clip(index), index) for index in places]
    budget = (config.validation.decode or ValidationDecode()).batch_tokens
    decoding, completions = Decoding.greedy(Decode(max_new_tokens=layout.room_tokens, batch_tokens=budget)), []
    with progress("replay", len(requests), "clips") as bar:
        for batch in decode(network, cache or LiveAudio(network, split), processes.share(requests), decoding):
            completions += [each for each in batch if not each.is_cut(layout)]
            bar.advance(processes.count() * len(batch))
    by_id = {each.utterance_id: each for each in processes.gather(completions)}
    clips = {request.utterance_id: split.clip(request.index) for request in requests}
    return [_row(by_id[identity], tokenizer, layout, clip) for identity, clip in clips.items() if identity in by_id]


def _row(completion: Completion, tokenizer, layout: Layout, clip: ClipSize) -> ReplayRow:
    """Without the waiting after the clip's end: not every base writes EOS there, but each target does."""
    token_ids, end = completion.token_ids, layout.room_start(clip) - layout.prompt_tokens(clip)
    while len(token_ids) > end and token_ids[-1] == layout.filler_id:
        token_ids = token_ids[:-1]
    return ReplayRow(completion.utterance_id, written_text(tokenizer, token_ids), token_ids)


def _write(path: Path, rows: list[ReplayRow]) -> None:
    with open_atomic(path) as file:
        for row in rows:
            file.write(dump_row(row).encode("utf-8"))
