"""Recall of tags by the time of their event in the clip."""

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from ..records import Prediction
from ..text.tags import find_tags
from .intervals import Units, ratio


def recall_by_time(
    rows: Sequence[Prediction], edges_s: Sequence[float], fewest: int = 10, samples: int = 2000, seed: int = 0
) -> list[dict]:
    """Recall of the reference tags by the start of their event: [{from_s, to_s, mean_s, events, value, low, high}], for bins with
    at least `fewest` events. If a clip has a tag twice and the system wrote it once, the earlier one counts as found. Rows
    without events are left out; several rows of one clip all count."""
    begins, found, ids = [], [], []
    for row in rows:
        left = Counter(find_tags(row.prediction))
        for event in sorted(row.events or [], key=lambda event: event["start_s"]):
            begins.append(event["start_s"])
            found.append(left[event["tag"]] > 0)
            left[event["tag"]] -= 1
            ids.append(row.id)
    if not begins:
        return []
    begins, found, units = np.array(begins), np.array(found, float), Units(ids, samples, seed)
    table = []
    for first, last in pairwise(edges_s):
        inside = (begins >= first) & (begins < last)
        if inside.sum() >= max(fewest, 1):
            bounds = {"from_s": first, "to_s": last, "mean_s": float(begins[inside].mean()), "events": int(inside.sum())}
            table.append(bounds | units.measure(ratio(found * inside, inside.astype(float)), inside))
    return table
