"""Statistics of a corpus, and advice where a figure is unusual."""

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from itertools import combinations

import numpy as np

from ..data.splits import SPLITS
from ..plain_text import listed
from ..text.tags import find_tags, strip_tags
from ..text.taxonomy import Taxonomy
from .transcripts import forbids_commercial_use

UNTAGGED_RANGE = (0.25, 0.35)
_FEW_TRAINING_CLIPS, _FEW_TEST_CLIPS = 20, 10
_UNEVEN = 20
_MOST_SPEAKERS = 15


@dataclass(frozen=True)
class MeasuredClip:
    """The parts of a row that the statistics need. `text`: None for an unlabelled clip."""

    split: str
    duration_s: float
    text: str | None
    speaker: str | None = None
    license: str | None = None
    language: str | None = None


@dataclass
class Statistics:
    """`tags`: tag -> split -> clips with it. `together`: [tag, tag, clips with both]. Hours, seconds, counts.

    `clips`, `hours` and lengths are of all clips, `unlabelled` (clips, hours) of those without text. All that is about words or
    tags is about the others; `untagged_share` and `words_per_second` are None if there are none."""

    clips: dict[str, int]
    hours: dict[str, float]
    unlabelled: tuple[int, float]
    duration_s: dict[str, float]
    durations_s: list[float]
    tags_per_clip: dict[int, int]
    untagged_share: float | None
    tags: dict[str, dict[str, int]]
    occurrences: dict[str, int]
    together: list[tuple[str, str, int]]
    words_per_second: float | None
    speakers: dict[str, float]
    licenses: dict[str, int]
    languages: dict[str, int]
    advice: list[str] = field(default_factory=list)

    def to_json(self) -> dict:
        content = asdict(self)
        content["duration_histogram"] = [[low, count] for low, count in duration_histogram(content.pop("durations_s"))]
        return content


def gather(clips: Iterable[MeasuredClip], taxonomy: Taxonomy) -> Statistics:
    """Raises ValueError if there is no clip."""
    count, hours, speakers, licenses, languages = Counter(), Counter(), Counter(), Counter(), Counter()
    per_clip, occurrences, together = Counter(), Counter(), Counter()
    tags: dict[str, Counter] = {tag: Counter() for tag in taxonomy.tags}
    durations, unlabelled_s, words = [], [], 0
    for clip in clips:
        count[clip.split] += 1
        hours[clip.split] += clip.duration_s / 3600
        durations.append(clip.duration_s)
        if clip.speaker:
            speakers[clip.speaker] += clip.duration_s / 3600
        licenses[clip.license or "not given"] += 1
        languages[clip.language or "not given"] += 1
        if clip.text is None:
            unlabelled_s.append(clip.duration_s)
            continue
        in_clip = find_tags(clip.text)
        words += len(strip_tags(clip.text).split())
        per_clip[len(in_clip)] += 1
        occurrences.update(in_clip)
        for tag in set(in_clip):
            tags.setdefault(tag, Counter())[clip.split] += 1
        together.update(combinations(sorted(set(in_clip)), 2))
    if not durations:
        raise ValueError("there is no clip")
    labelled, order = per_clip.total(), [split for split in SPLITS if count[split]]
    quantiles = np.quantile(durations, (0, 0.05, 0.5, 0.95, 1))
    statistics = Statistics(
        clips={split: count[split] for split in order},
        hours={split: hours[split] for split in order},
        unlabelled=(len(unlabelled_s), sum(unlabelled_s) / 3600),
        duration_s=dict(zip(("shortest", "5%", "median", "95%", "longest"), map(float, quantiles), strict=True)),
        durations_s=durations,
        tags_per_clip=dict(sorted(per_clip.items())),
        untagged_share=per_clip[0] / labelled if labelled else None,
        tags={tag: {split: counts[split] for split in order} for tag, counts in tags.items()},
        occurrences=dict(occurrences),
        together=[(one, other, number) for (one, other), number in together.most_common()],
        words_per_second=words / max(sum(durations) - sum(unlabelled_s), 1e-9) if labelled else None,
        speakers=dict(speakers.most_common()),
        licenses=dict(licenses.most_common()),
        languages=dict(languages.most_common()),
    )
    statistics.advice = advise(statistics)
    return statistics


def advise(statistics: Statistics) -> list[str]:
    """Sentences about what is unusual; empty if nothing is."""
    if statistics.untagged_share is None:
        advice = ["No clip has a text: SFT and the evaluation need some that have (docs/data.md)."]
    else:
        advice = _advise_on_tags(statistics)
    advice += [f"There is no {split} split." for split in ("validation", "test") if split not in statistics.clips]
    if statistics.duration_s["longest"] > 30:
        longest = statistics.duration_s["longest"]
        advice.append(f"The longest clip lasts {longest:.0f} s; by default audio.max_seconds rejects clips over 30 s.")
    bound = [name for name in statistics.licenses if forbids_commercial_use(name)]
    if bound:
        advice.append(f"{', '.join(bound)}: no commercial use of the data or of models trained on it.")
    return advice


def _advise_on_tags(statistics: Statistics) -> list[str]:
    advice = []
    low, high = UNTAGGED_RANGE
    if not low <= statistics.untagged_share <= high:
        what = "too few to teach that most speech needs no tag" if statistics.untagged_share < low else "tags are rarely seen"
        advice.append(
            f"{statistics.untagged_share:.0%} of the clips are untagged; {low:.0%} to {high:.0%} is usual: {what}. "
            "Use train.untagged_share to draw them more or less often."
        )
    training = {tag: sum(splits.get(split, 0) for split in ("train", "raft")) for tag, splits in statistics.tags.items()}
    absent = [tag for tag, splits in statistics.tags.items() if not sum(splits.values())]
    if absent:
        advice.append(f"No clip has {_listed(absent)}: a tag without examples cannot be learned.")
    few = [tag for tag, clips in training.items() if clips < _FEW_TRAINING_CLIPS and tag not in absent]
    if few:
        advice.append(f"Fewer than {_FEW_TRAINING_CLIPS} training clips with {_listed(few)}: add some, or map them to others.")
    present = [clips for clips in training.values() if clips]
    if present and max(present) > _UNEVEN * min(present):
        advice.append(
            f"The most frequent tag has {max(present) / min(present):.0f} times as many clips as the rarest: "
            "train.sampling: square_root evens that out."
        )
    if "test" in statistics.clips:
        thin = [tag for tag, splits in statistics.tags.items() if splits["test"] < _FEW_TEST_CLIPS and tag not in absent]
        if thin:
            advice.append(f"Fewer than {_FEW_TEST_CLIPS} test clips with {_listed(thin)}: their scores will be unreliable.")
    return advice


def duration_histogram(durations_s: list[float], most_bins: int = 30) -> list[tuple[float, int]]:
    """(lower edge in s, clips), in bins of a whole or half number of seconds."""
    longest = max(durations_s)
    width = next((width for width in (0.25, 0.5, 1, 2, 5, 10, 30, 60, 300, 3600) if longest / width <= most_bins), None)
    width = width or 3600 * math.ceil(longest / most_bins / 3600)
    counts = Counter(int(duration / width) for duration in durations_s)
    return [(index * width, counts[index]) for index in range(max(counts) + 1)]


def most_speakers(statistics: Statistics) -> dict[str, float]:
    """Hours of the speakers with the most; the rest together as "5 others"."""
    items = list(statistics.speakers.items())
    shown, rest = dict(items[:_MOST_SPEAKERS]), items[_MOST_SPEAKERS:]
    return shown | ({f"{len(rest)} others": sum(hours for _, hours in rest)} if rest else {})


def _listed(tags: list[str]) -> str:
    return listed([f"[{tag}]" for tag in tags])
