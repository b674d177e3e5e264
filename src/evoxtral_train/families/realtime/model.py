"""Voxtral Realtime: load it, describe it, and run its two halves one after the other.

The stock forward adds the projected audio to the token embeddings and runs the language model
on the sum. `audio_embeddings` and `language_model_hidden` are those two steps, so that decoding
can encode a clip once; a test holds them equal to the stock forward.
"""

import hashlib
import os
from pathlib import Path

import torch
from transformers import AutoConfig, VoxtralRealtimeConfig, VoxtralRealtimeForConditionalGeneration
from transformers.utils import logging as transformers_logging

from ...config.sections import Model
from ...errors import UsageError
from ..checkpoint import resolve_base

transformers_logging.disable_progress_bar()

_SAMPLE_BYTES = 1 << 20


class CachedAudioVoxtralRealtimeForConditionalGeneration(VoxtralRealtimeForConditionalGeneration):
    """The stock class with one more input: `audio_embeds` in place of `input_features`.

    The stock forward refuses to run without audio. Given the projected audio [B, T, hidden], this
    one runs the language model alone, and `lm_head` only where labels stand: the same loss, without
    T × 131,072 logits. `label_weights` [B, T]: what each label counts in the loss. With neither it is the
    stock forward. Same weights, same names: an adapter trained here loads into the stock class.
    """

    def forward(
        self, input_ids=None, audio_embeds=None, labels=None, num_delay_tokens=None, label_weights=None, **kwargs
    ):  # fmt: skip
        if audio_embeds is None and label_weights is None:
            return super().forward(input_ids=input_ids, labels=labels, num_delay_tokens=num_delay_tokens, **kwargs)
        if audio_embeds is None:
            audio_embeds = audio_embeddings(self, kwargs.pop("input_features"))
        hidden = language_model_hidden(self, input_ids, audio_embeds, num_delay_tokens)
        wanted = labels[:, 1:] != -100
        logits = self.lm_head(hidden[:, :-1][wanted])
        if label_weights is not None:
            weights = label_weights[:, 1:][wanted]
            losses = torch.nn.functional.cross_entropy(logits.float(), labels[:, 1:][wanted], reduction="none")
            total = kwargs.get("num_items_in_batch")
            return {"loss": (losses * weights).sum() / (weights.sum() if total is None else total)}
        loss = self.loss_function(
            logits=logits,
            labels=None,
            shift_labels=labels[:, 1:][wanted],
            vocab_size=self.config.text_config.vocab_size,
            num_items_in_batch=kwargs.get("num_items_in_batch"),
        )
        return {"loss": loss}


def drop_audio_path(model: VoxtralRealtimeForConditionalGeneration) -> None:
    """Free the audio tower and the projector once their output is cached: `Trainer` moves all that is there."""
    model.model.audio_tower = None
    model.model.multi_modal_projector = None


def pick_device(device: str) -> torch.device:
    """`auto` is CUDA where there is one; of several processes each takes its own GPU. Raises UsageError
    for a device that is not here."""
    own = int(os.environ.get("LOCAL_RANK", "0"))
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda":
        device = f"cuda:{own}"
    try:
        torch.empty(0, device=device).cpu()  # `meta` makes what cannot be read back
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        fix = "set model.device to auto" if own == 0 else "start as many processes as there are GPUs, or set model.device to cpu"
        raise UsageError(f"device {device!r} cannot be used: {reason}", fix=fix) from None
    return torch.device(device)


def load_model(config: Model) -> VoxtralRealtimeForConditionalGeneration:
    """The checkpoint's weights in evaluation mode, frozen, on the CPU: see `place_language_model`."""
    folder = resolve_base(config.base, config.revision)
    try:
        model = CachedAudioVoxtralRealtimeForConditionalGeneration.from_pretrained(
            folder, dtype=getattr(torch, config.dtype), use_safetensors=True, trust_remote_code=False
        )
    except (OSError, ValueError, RuntimeError) as error:
        fix = "is this a whole Voxtral Realtime checkpoint (config.json and *.safetensors)?"
        if any(folder.glob("*.bin")) and not any(folder.glob("*.safetensors")):
            fix = "weights that are a pickle (*.bin) can run code and are not opened: convert them to safetensors"
        what = f"the checkpoint cannot be loaded: {str(error).splitlines()[0]}"
        raise UsageError(what, where=str(folder), fix=fix) from None
    return model.requires_grad_(False).eval()


def place_language_model(model, device: torch.device) -> None:
    """Move all but the audio path: with an audio cache a GPU never holds both."""
    inner = stock(model)
    for part in (inner.model.language_model, inner.model.time_embedding, inner.lm_head):
        part.to(device)


def place_audio_path(model, device: torch.device) -> None:
    """Move the audio tower and the projector, a quarter of the 4B weights."""
    inner = stock(model)
    inner.model.audio_tower.to(device)
    inner.model.multi_modal_projector.to(device)


def language_model_device(model) -> torch.device:
    return stock(model).get_input_embeddings().weight.device


def describe_model(base: str, revision: str | None) -> tuple[VoxtralRealtimeForConditionalGeneration, str]:
    """The model's shape on the meta device, without weights, and where the shape comes from.

    Where the checkpoint cannot be had, the class's default config stands in: it is the 4B model's.
    """
    try:
        config = AutoConfig.from_pretrained(resolve_base(base, revision, weights=False), trust_remote_code=False)
        source = "the checkpoint's config"
    except UsageError:
        if Path(base).exists() or base.startswith((".", "/")):
            raise
        config, source = VoxtralRealtimeConfig(), "the class's default config (the checkpoint is not here)"
    with torch.device("meta"):
        return VoxtralRealtimeForConditionalGeneration(config), source


def base_fingerprint(folder: Path) -> str:
    """Changes with the config or the weights. Of each weight file the size and both ends are read,
    so that 9 GB do not have to be."""
    digest = hashlib.sha256((folder / "config.json").read_bytes())
    for path in sorted(folder.glob("*.safetensors")):
        size = path.stat().st_size
        digest.update(f"{path.name} {size}".encode())
        with path.open("rb") as file:
            digest.update(file.read(_SAMPLE_BYTES))
            file.seek(max(size - _SAMPLE_BYTES, 0))
            digest.update(file.read())
    return digest.hexdigest()[:16]


def stock(model) -> VoxtralRealtimeForConditionalGeneration:
    """The stock model inside a PEFT wrapper (its linear layers then carry the adapter), or itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def audio_embeddings(model, mel: torch.Tensor) -> torch.Tensor:
    """mel [B, 128, 8 × T] -> projected audio [B, T, hidden]. Causal: the first t depend on no later frame."""
    inner = stock(model)
    weight = inner.model.multi_modal_projector.linear_1.weight
    return inner.get_audio_features(mel.to(weight.device, weight.dtype), return_dict=True).pooler_output


def language_model_hidden(
    model, ids: torch.Tensor, audio: torch.Tensor, delay_tokens: int, cache=None, position_ids=None, attention_mask=None
) -> torch.Tensor:
    """ids [B, T] and their audio [B, T, hidden] -> last hidden states [B, T, hidden]; `cache` is extended.

    `position_ids` [B, T] and `attention_mask` [B, 1, T, keys] (bool) are for rows that stand at positions
    of their own; by default all rows go on where the cache ends.
    """
    inner = stock(model)
    embeds = inner.get_input_embeddings()(ids) + audio
    delay = torch.full((1,), delay_tokens, device=embeds.device, dtype=embeds.dtype)
    outputs = inner.model.language_model(
        inputs_embeds=embeds,
        past_key_values=cache,
        use_cache=cache is not None,
        position_ids=position_ids,
        attention_mask=attention_mask,
        t_cond=inner.model.time_embedding(delay)[None],
    )
    return outputs.last_hidden_state


def sizes(model) -> dict[str, int]:
    """Parameters: all of them, and those that are trained."""
    parameters = list(model.parameters())
    return {
        "parameters": sum(each.numel() for each in parameters),
        "trainable_parameters": sum(each.numel() for each in parameters if each.requires_grad),
    }
