"""The config of `serve`."""

from typing import Literal
from urllib.parse import urlsplit

from pydantic import Field, PositiveFloat, PositiveInt, field_validator, model_validator

from .sections import Section
from .transcription import Transcription

Rows = Literal["base", "adapter", "both"]
"""What is decoded: the base's words, the adapters' tags, or both."""


class Listen(Section):
    """Where the server listens, and who may use it."""

    host: str = Field("127.0.0.1", description="Address to listen on. 0.0.0.0: all interfaces; then set an API key.")
    port: int = Field(8000, ge=0, le=65_535, description="TCP port. 0: any free one, which is printed.")
    api_key: str | None = Field(
        None, description="Clients must send it as `Authorization: Bearer KEY`. null: EVOXTRAL_API_KEY, or none is needed."
    )
    allowed_origins: list[str] = Field(
        [], description="Other sites whose pages may use the server, such as https://example.org; *: all."
    )

    @field_validator("allowed_origins")
    @classmethod
    def _as_browsers_send_them(cls, origins: list[str]) -> list[str]:
        for origin in origins:
            site = urlsplit(origin)
            if origin != "*" and origin != f"{site.scheme}://{site.netloc}".lower():
                raise ValueError("an origin is scheme://host or scheme://host:port, in lower case, without a path or a final /")
        return origins


class Live(Section):
    """Streams that are transcribed while people speak."""

    streams: PositiveInt | None = Field(
        None, description="Most streams at a time. null: as many as fit into memory, at most 64 (8 on a CPU)."
    )
    memory_share: float = Field(
        0.8, gt=0, le=1, description="Share of the free memory that the streams' keys and values may take."
    )
    rows: Rows = Field(
        "both", description="What is decoded for a stream that does not say: base (words) | adapter (tags) | both."
    )
    gather_ms: float = Field(
        20.0, ge=0, le=80, description="How long a stream's frame waits for those of other streams, in milliseconds."
    )
    patience_s: PositiveFloat = Field(
        2.0,
        description="Silence that ends a stream's utterance, in seconds; files have segmentation.patience_s. "
        "[ours: above the demo's longest pause, 1.48 s]",
    )  # fmt: skip
    blank_rut_s: PositiveFloat | None = Field(
        15.0,
        description="A blank rut: the base writes nothing for this long although there is sound. The utterance is then ended, "
        "and the next begins. null: never. [ours: above the longest natural run, 13 s]",
    )  # fmt: skip
    blank_rut_margin: PositiveFloat = Field(
        7.5, description="A blank rut counts only if the pad token leads the second choice by less than this on average, in "
        "logits. [ours: between ruts, 3.5 to 6.6, and true silence, 8.5 and more]"
    )  # fmt: skip


class Limits(Section):
    """What a client may send and hold."""

    upload_bytes: PositiveInt = Field(100 * 2**20, description="Largest file. [the 3B project's studio: 100 MB]")
    upload_s: PositiveFloat = Field(4 * 3600.0, description="Longest file, in seconds of audio.")
    uploads: PositiveInt = Field(8, description="Most files at a time; further ones are refused.")
    message_bytes: PositiveInt = Field(2**20, description="Largest WebSocket message.")
    queue_s: PositiveFloat = Field(
        30.0, description="Audio of a stream that may wait to be decoded, in seconds; beyond it the server stops reading."
    )
    session_s: PositiveFloat = Field(2 * 3600.0, description="Longest stream, in seconds of audio.")
    idle_s: PositiveFloat = Field(60.0, description="A stream that sends nothing for this long is closed.")
    send_s: PositiveFloat = Field(10.0, description="A client that does not take a message within this time is closed.")
    drain_s: PositiveFloat = Field(30.0, description="After SIGTERM, what was heard is finished for at most this long.")


class ServeConfig(Transcription):
    """`evoxtral serve`"""

    listen: Listen = Listen()
    live: Live = Live()
    limits: Limits = Limits()
    public_name: str = Field("evoxtral", min_length=1, description="The model's name in answers to clients.")

    @model_validator(mode="after")
    def _in_order(self) -> "ServeConfig":
        if self.live.rows == "adapter" and not self.adapters:
            raise ValueError("live.rows is adapter, but no adapter is named")
        if not self.segmentation.pause_s <= self.live.patience_s <= self.segmentation.max_s / 2:
            raise ValueError("live.patience_s must lie between segmentation.pause_s and half of segmentation.max_s")
        return self
