"""The fields of the forms, besides `file`. An unknown field or value is refused, and the message names the known ones."""

import difflib
from collections.abc import Sequence
from typing import Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from ..config.serving import Rows
from .refusals import Refusal

FormT = TypeVar("FormT", bound="Form")


class Form(BaseModel):
    """`/transcribe` and `/transcribe/stream`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    language: str | None = Field(
        None, description="ISO 639-1 code, such as en, for the prompt. No effect for Voxtral Realtime, whose prompt names none."
    )
    rows: Rows | None = Field(None, description="What to decode: base (words), adapter (tags) or both. Default: the server's.")


class TranscriptionForm(Form):
    """`/v1/audio/transcriptions`: OpenAI's fields and Mistral's."""

    model: str | None = Field(None, description="Any name: the server has one model, and its answers say which.")
    prompt: str | None = Field(None, description="Accepted for existing clients. The model takes no prompt.")
    response_format: Literal["json", "text", "srt", "vtt", "verbose_json"] = Field("json", description="Form of the answer.")
    temperature: float = Field(0.0, description="0: decoding is greedy, and other values are refused.")
    stream: bool = Field(False, description="Answer with server-sent events, as the text is written.")
    timestamp_granularities: list[Literal["word", "segment"]] = Field(
        ["segment"], description="Which times verbose_json has: word, segment or both."
    )
    diarize: bool = Field(False, description="false: the model does not tell speakers apart.")

    @field_validator("temperature")
    @classmethod
    def _greedy(cls, value: float) -> float:
        if value != 0:
            raise ValueError("decoding is greedy; send 0, or leave it out")
        return value

    @field_validator("diarize")
    @classmethod
    def _one_speaker(cls, value: bool) -> bool:
        if value:
            raise ValueError("the model does not tell speakers apart; send false, or leave it out")
        return value

    @model_validator(mode="after")
    def _streams_json(self) -> "TranscriptionForm":
        if self.stream and self.response_format != "json":
            raise ValueError(f"stream: true answers with events, not as {self.response_format}; leave one of the two out")
        return self


def read_form(schema: type[FormT], sent: Sequence[tuple[str, str]]) -> FormT:
    """`sent`: (name, value) in order; a list's name may end with []. Empty values count as not sent. Raises Refusal."""
    content: dict[str, object] = {}
    for name, value in sent:
        key = name.removesuffix("[]")
        if key not in schema.model_fields:
            raise _unknown(schema, key)
        if not value:
            continue
        if isinstance(schema.model_fields[key].get_default(call_default_factory=True), list):
            content.setdefault(key, []).append(value)
        elif key in content:
            raise Refusal(422, "invalid_value", f"{key}: sent twice", key)
        else:
            content[key] = value
    try:
        return schema(**content)
    except ValidationError as error:
        raise _invalid(error) from None


def _unknown(schema: type[Form], name: str) -> Refusal:
    known = ["file", *schema.model_fields]
    nearest = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {nearest[0]}?" if nearest else f"known: {', '.join(known)}"
    return Refusal(422, "unknown_field", f"unknown field {name[:100]!r}; {hint}", name[:100])


def _invalid(error: ValidationError) -> Refusal:
    """The first fault."""
    fault = error.errors(include_url=False)[0]
    name = str(fault["loc"][0]) if fault["loc"] else None
    if "expected" in fault.get("ctx", {}):
        message = f"{str(fault['input'])[:100]!r} is not known; use {fault['ctx']['expected'].replace(chr(39), '')}"
    else:
        message = fault["msg"].removeprefix("Value error, ")
    return Refusal(422, "invalid_value", f"{name}: {message}" if name else message, name)
