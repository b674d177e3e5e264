"""What a detector hears in clips: a probability for each tag that it knows, from `evoxtral probe` or any other program.

    {"id": "clip-1", "tags": {"sighs": 0.93, "laughs": 0.02}}

One row for each clip, in any order. A tag that a row leaves out has probability 0 there, so a file may list only what was heard.
A tag that no row names is unknown to the detector, which is different: it is not judged at all.
"""

import difflib
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import UsageError
from ..reading import shown
from ..records import read_jsonl, row_place
from ..text.tags import canonical

_FIX = 'write one row {"id": …, "tags": {tag: probability}} for each clip; `tags` may be empty'


@dataclass(frozen=True)
class Detections:
    """`probabilities` [clips, tags], for the clips `places` (id -> row) and the tags that the detector knows."""

    tags: tuple[str, ...]
    places: dict[str, int]
    probabilities: np.ndarray

    def of(self, clip: str) -> dict[str, float]:
        """tag -> probability."""
        return dict(zip(self.tags, self.probabilities[self.places[clip]].tolist(), strict=True))

    @classmethod
    def read(cls, path: Path, clips: Collection[str], tags: Collection[str]) -> "Detections":
        """From a JSONL file. Rows of other clips are checked, but not used. `tags`: all that exist for the dataset.

        Raises UsageError, with the place, for a row of another form, a probability that is not between 0 and 1, an unknown tag, a
        clip that is there twice or not at all, and a file that names no tag.
        """
        columns: dict[str, int] = {}
        places: dict[str, int] = {}
        entries: list[tuple[int, int, float]] = []
        for number, row in read_jsonl(path):
            try:
                clip, of_clip = _checked(row, tags)
                if clip in places:
                    raise ValueError(f"clip {shown(clip)} is there twice")
            except ValueError as error:
                raise UsageError(str(error), where=row_place(path, number), fix=_FIX) from None
            places[clip] = len(places)
            entries += [(places[clip], columns.setdefault(tag, len(columns)), value) for tag, value in of_clip]
        missing = [clip for clip in clips if clip not in places]
        if missing:
            what = f"{len(missing):,} of {len(clips):,} clips are missing, the first is {shown(missing[0])}"
            raise UsageError(what, where=str(path), fix=_FIX)
        if not columns:
            raise UsageError("no row names a tag", where=str(path), fix=_FIX)
        probabilities = np.zeros((len(places), len(columns)), np.float32)
        rows, of_tag, values = zip(*entries, strict=True)
        probabilities[rows, of_tag] = values
        return cls(tuple(columns), places, probabilities)


def _checked(row: dict[str, Any], tags: Collection[str]) -> tuple[str, list[tuple[str, float]]]:
    """(id, [(tag, probability)]). Raises ValueError."""
    clip, of_clip = row.get("id"), row.get("tags")
    if not isinstance(clip, str) or not isinstance(of_clip, dict):
        raise ValueError("a row needs `id`, a text, and `tags`, an object")
    pairs = list(_pairs(of_clip, tags))
    if len(dict(pairs)) < len(pairs):
        raise ValueError("the same tag is there twice, in another spelling")
    return clip, pairs


def _pairs(of_clip: dict[str, Any], tags: Collection[str]) -> Iterator[tuple[str, float]]:
    for name, value in of_clip.items():
        tag = canonical(name)
        if tag not in tags:
            near = difflib.get_close_matches(tag, tags, 1)
            raise ValueError(f"the dataset has no tag {shown(name)}" + (f", did you mean {near[0]!r}?" if near else ""))
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:  # NaN is not, either
            raise ValueError(f"the probability of {shown(name)} is {shown(value)}, not a number from 0 to 1")
        yield tag, float(value)
