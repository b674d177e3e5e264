"""Which of the tags that a model wrote are kept: by threshold, the first k, the k most confident."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

NEVER = 1.01
"""A threshold that no confidence reaches: the tag is always dropped."""


@dataclass(frozen=True)
class Thresholds:
    """The confidence that a tag needs to be kept: `by_tag`, and `default` for all others. From 0 (always kept) to `NEVER`.

    Raises ValueError for a threshold that is not within these bounds."""

    default: float = 0.0
    by_tag: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self):
        for name, value in (("the default", self.default), *self.by_tag.items()):
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= NEVER or math.isnan(value):
                raise ValueError(f"the threshold of {name} is {value!r}, not a number from 0 to {NEVER}")

    def of(self, tag: str) -> float:
        return self.by_tag.get(tag, self.default)

    def as_json(self) -> dict[str, Any]:
        """{"default": 0.4, "by_tag": {"sighs": 0.55}}"""
        return {"default": self.default, "by_tag": dict(sorted(self.by_tag.items()))}

    @classmethod
    def from_json(cls, content: Any) -> "Thresholds":
        """The inverse of `as_json`. Raises ValueError if `content` is anything else."""
        if not isinstance(content, dict) or content.keys() != {"default", "by_tag"} or not isinstance(content["by_tag"], dict):
            raise ValueError("thresholds are written as {default, by_tag: {tag: threshold}}")
        return cls(content["default"], content["by_tag"])


@dataclass(frozen=True)
class TagFilter:
    """Keeps the tags of a clip that reach `min_confidence` and their own threshold; of these, the first (`top_k_by` "emission")
    or the most confident ("confidence") `top_k`. By default all tags."""

    top_k: int | None = None
    top_k_by: Literal["emission", "confidence"] = "emission"
    min_confidence: float = 0.0
    thresholds: Thresholds | None = None

    @property
    def needs_confidences(self) -> bool:
        ranked = self.top_k is not None and self.top_k_by == "confidence"
        return self.min_confidence > 0 or self.thresholds is not None or ranked

    def kept(self, tags: Sequence[str], confidences: Sequence[float] | None) -> list[int]:
        """The indices of the tags that stay, in order. `tags`: canonical names, in the order written; `confidences`: of each.

        Raises ValueError if the filter needs confidences and there are none."""
        kept = list(range(len(tags)))
        if self.needs_confidences:
            if confidences is None:
                raise ValueError("these predictions have no confidences")
            kept = [place for place in kept if confidences[place] >= self._lowest(tags[place])]
        if self.top_k is None:
            return kept
        order = sorted(kept, key=lambda place: (-confidences[place], place)) if self.top_k_by == "confidence" else kept
        return sorted(order[: self.top_k])

    def _lowest(self, tag: str) -> float:
        return max(self.min_confidence, self.thresholds.of(tag) if self.thresholds else 0.0)
