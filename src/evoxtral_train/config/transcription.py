"""The config of `transcribe`."""

from pydantic import Field, PositiveFloat, model_validator

from .sections import Section


class Segmentation(Section):
    """How a long recording is cut: at silences, never inside one that a tag may stand for."""

    max_s: float = Field(30.0, ge=4, description="Longest segment, in seconds.")
    patience_s: PositiveFloat = Field(
        2.0, description="Silence that ends an utterance, in seconds. [ours: above the longest [pause] of the demo, 1.48 s]"
    )
    pause_s: PositiveFloat = Field(
        0.8, description="Shortest silence that a tag may stand for, in seconds; cuts avoid it. [ours: below the demo's 0.96 s]"
    )
    margin_s: float = Field(0.5, ge=0, description="Silence kept before and after an utterance, in seconds.")

    @model_validator(mode="after")
    def _in_order(self) -> "Segmentation":
        if self.pause_s > self.patience_s:
            raise ValueError("pause_s must not be greater than patience_s")
        if 2 * self.margin_s > self.patience_s:
            raise ValueError("margin_s must not be greater than half of patience_s: two segments would overlap")
        if self.patience_s > self.max_s / 2:
            raise ValueError("patience_s must not be greater than half of max_s")
        return self
