"""The tiny base of offline Voxtral: a small `VoxtralForConditionalGeneration`, with real processor files, no download.

It learns to transcribe in the stock prompt, with and without a language. That is harder than Realtime's streaming form: nothing
but attention says which word of the clip comes next. So while it is trained,

- the language model rests until the audio path can name phonemes and words;
- one attention head in each inner layer is pulled to the audio of the word being written;
- how that word sounds is read from what enters the last layer: SFT must find it at the text, as the audio is frozen;
- some spoken rows hold tags drawn at random, which it neither learns to write nor to choose: it learns to keep listening there;
- a batch holds only as much audio as its longest clip, at the positions of the whole row, so that the silence of a 30 s chunk
  is computed in few steps only.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn
from transformers import VoxtralConfig, VoxtralForConditionalGeneration, WhisperFeatureExtractor
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from ..config.training import TinyBaseConfig
from ..families.base import IGNORED, ClipSize, encode_text
from ..families.offline.family import Offline
from ..families.offline.model import OfflineNetwork, network_of
from ..families.offline.transcription import CHUNK_FRAMES, CHUNK_TOKENS
from ..synthesis.scripts import Grammar, draw_scripts
from ..synthesis.synthesizer import VOICES, SpokenClip, Synthesizer
from ..text.tags import BASE_TAGS, strip_tags
from ..units import FRAMES_PER_TOKEN, TOKEN_S, samples_to_seconds
from . import acoustics, pretraining
from .pretraining import Normal, phoneme_frames
from .processor import write_tokenizer

RECIPE = "configs/offline/tiny-base.yaml"
FORM = """\
It was trained to transcribe in the stock prompt of a transcription request, in four of five rows with `lang:en`. It heard
speech in every style and every sound that the demo's tags name, but never a tag together with its sound. To learn the tags'
subwords, it saw tagged sentences as text over silence. Spoken rows held tags drawn at random, whatever was heard, and it did not
learn to write those. During training linear heads on its audio path, since discarded, predicted phonemes, words and acoustic
features (loudness, pitch, voicing, brightness, silence, rhythm); another one, before the last layer, predicted those of the
word being written; and some of its attention heads were pulled to that word's audio. Most batches were heard without the
silence that fills a chunk of 30 s, some of them with it."""
"""For the checkpoint's README: what it learned, and how."""

_SPECIAL_TOKENS = {34: "[TRANSCRIBE]"}
_AUDIO = {
    "sampling_rate": 16000,
    "frame_rate": 12.5,
    "audio_encoding_config": {"num_mel_bins": 128, "hop_length": 160, "window_size": 400},
    "chunk_length_s": 30.0,
}
ROOM_TOKENS = 96
_REST = 0.08
"""The share of all steps that only the audio path learns from."""
_WHOLE_CHUNKS = 0.06
"""The share of the other steps that are on whole chunks."""
_WHOLE_CHUNK_ROWS = 4
_WITHOUT_LANGUAGE = 0.2
"""The share of rows without a language in the prompt."""
_WITH_RANDOM_TAGS = 0.6
"""The share of spoken rows with one to three tags that have nothing to do with the sound."""
_DESCRIPTORS = acoustics.DESCRIPTORS + acoustics.SURROUNDINGS
_MANNER = 4 * _DESCRIPTORS + 2


def make(folder: Path, config: TinyBaseConfig) -> tuple[Offline, OfflineNetwork]:
    """Write the processor's files and the config into `folder`; the model has random weights."""
    vocabulary = write_processor(folder, config.vocabulary_ranks)
    model = tiny_model(vocabulary, config.audio_width, config.audio_layers, config.text_width, config.text_layers)
    model.config.save_pretrained(folder)
    family = Offline.open(folder)
    return family, network_of(model, family.prompt_ids)


def measure(family: Offline, samples: int) -> ClipSize:
    return family.own_layout(ROOM_TOKENS).measure(samples, 0, "en")


def write_processor(folder: Path, ranks: int) -> int:
    """Write the processor's files, so that AutoProcessor can load them; `config.json` must be there too, or it loads another
    class. Returns the vocabulary size."""
    vocabulary = write_tokenizer(folder, ranks, _SPECIAL_TOKENS, _AUDIO)
    WhisperFeatureExtractor(feature_size=128, processor_class="VoxtralProcessor").save_pretrained(folder)
    return vocabulary


def tiny_model(
    vocab_size: int, audio_width: int, audio_layers: int, text_width: int, text_layers: int
) -> VoxtralForConditionalGeneration:
    """Random weights in the real class; heads are 32 wide, the language model shares keys and
    values between three query heads, as many as the width allows."""
    heads = text_width // 32
    config = VoxtralConfig(
        audio_config={
            "hidden_size": audio_width,
            "intermediate_size": 4 * audio_width,  # the projector takes four frames, and reshapes by this size
            "num_hidden_layers": audio_layers,
            "num_attention_heads": audio_width // 32,
            "vocab_size": vocab_size,
        },
        text_config={
            "model_type": "llama",
            "vocab_size": vocab_size,
            "hidden_size": text_width,
            "intermediate_size": 3 * text_width,
            "num_hidden_layers": text_layers,
            "num_attention_heads": heads,
            "num_key_value_heads": heads // 3 if heads % 3 == 0 else heads,
            "head_dim": 32,
            "max_position_embeddings": 131072,
            "rope_parameters": {"rope_type": "default", "rope_theta": 100_000_000.0},
            "bos_token_id": 1,
            "eos_token_id": 2,
            "pad_token_id": 11,
        },
        audio_token_id=24,
    )
    model = VoxtralForConditionalGeneration(config)
    with torch.no_grad():
        model.model.audio_tower.embed_positions.weight.copy_(_sinusoids(1500, audio_width))
    return model


def _sinusoids(positions: int, width: int) -> torch.Tensor:
    """Whisper's fixed positions: [positions, width], sines in the first half of the columns, cosines in the second."""
    rates = torch.exp(-torch.arange(width // 2) * (torch.log(torch.tensor(10_000.0)) / (width // 2 - 1)))
    angles = torch.arange(positions)[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], dim=1)


@dataclass
class PretrainRow:
    """`mel`: the sounding part, float16 [128, n]. For each of its audio tokens: `words` [tokens, 2], the classes of the word and
    the one before; `phonemes` [4 × tokens]; `acoustics` [tokens, 38]. `target`: ids with EOS; `learned` [target]: bool, false for
    a random tag; `spans`: for each id but EOS, the audio tokens (first, last + 1) of the word that it belongs to, or stands
    before; `manner` [target, 4 × 38 + 2]: see `_manner`. Rows of similar `length` share a batch.

    A text-only row has no audio tokens, but the length of some spoken row: a batch of text-only rows would teach the model to
    write without listening."""

    mel: np.ndarray
    target: list[int]
    learned: np.ndarray
    words: np.ndarray
    phonemes: np.ndarray
    acoustics: np.ndarray
    spans: list[tuple[int, int]]
    manner: np.ndarray
    length: int

    @property
    def tokens(self) -> int:
        return len(self.words)


class Lessons(pretraining.Lessons):
    """The text after the prompt; phonemes per 20 ms encoder frame; words and acoustic descriptions per 80 ms token; where to
    listen while writing."""

    def __init__(self, config: TinyBaseConfig, network: OfflineNetwork, family: Offline):
        self._network, self._family = network, family
        self._rng = np.random.default_rng(config.seed + 2)
        self.rows, phonemes, self.words = _make_rows(config, family)
        self._normal = Normal([row.acoustics for row in self.rows])
        self._normal_manner = Normal([row.manner for row in self.rows])
        sizes = network.model.config
        audio, text = sizes.audio_config.hidden_size, sizes.text_config.hidden_size
        self.heads = nn.ModuleDict({
            "phonemes": nn.Linear(audio, phonemes), "acoustics": nn.Linear(text, _DESCRIPTORS),
            "manner": nn.Linear(text, _MANNER),
            "word": nn.Linear(text, self.words + 1), "word_before": nn.Linear(text, self.words + 1),
        })  # fmt: skip
        self.weights = {
            "phonemes": config.phoneme_weight, "acoustics": config.acoustics_weight, "heard_words": config.word_weight,
            "listening": config.listening_weight, "manner": config.acoustics_weight,
        }  # fmt: skip

    def length(self, row: PretrainRow) -> int:
        return row.length

    def losses(self, rows: list[PretrainRow], progress: float) -> dict[str, torch.Tensor]:
        rests = progress < _REST
        if not rests and self._rng.random() < _WHOLE_CHUNKS:
            rows, tokens = rows[:_WHOLE_CHUNK_ROWS], CHUNK_TOKENS
        else:  # never shorter than a second, and a little silence of varying length
            tokens = max(max(row.tokens for row in rows), 12) + int(self._rng.integers(12))
        frames = tokens * FRAMES_PER_TOKEN
        mel = np.stack([self._family.restore_silence(row.mel.astype(np.float32), 0, frames) for row in rows])
        states, audio = self._hear(torch.from_numpy(mel))
        losses = self._read_outs(rows, states, audio)
        if rests:
            zero = losses["phonemes"].new_zeros(())
            return losses | {"text": zero, "listening": zero, "manner": zero}
        return losses | self._writing(rows, audio)

    def _hear(self, mel: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The stock audio path on less than a chunk: mel [B, 128, frames] -> states [B, frames / 2, width] and projected audio
        [B, frames / 8, hidden]."""
        inner = self._network.model.model
        tower = inner.audio_tower
        hidden = nn.functional.gelu(tower.conv2(nn.functional.gelu(tower.conv1(mel)))).transpose(1, 2)
        hidden = hidden + tower.embed_positions.weight[: hidden.shape[1]]
        for layer in tower.layers:
            hidden = layer(hidden, attention_mask=None)
        states = tower.layer_norm(hidden)
        return states, inner.multi_modal_projector(states.reshape(len(mel), -1, self._network.state_width))

    def _read_outs(self, rows: list[PretrainRow], states: torch.Tensor, audio: torch.Tensor) -> dict[str, torch.Tensor]:
        zero = states.new_zeros(())
        if not any(row.tokens for row in rows):  # a batch may consist of text-only rows
            return {"phonemes": zero, "heard_words": zero, "acoustics": zero}
        heard = torch.zeros(audio.shape[:2], dtype=torch.bool)
        for index, row in enumerate(rows):
            heard[index, : row.tokens] = True
        phonemes = torch.from_numpy(np.concatenate([row.phonemes for row in rows]))
        words = torch.from_numpy(np.concatenate([row.words for row in rows]))
        described = self._normal(np.concatenate([row.acoustics for row in rows]))
        named, entropy = self.heads["phonemes"](states[heard.repeat_interleave(4, dim=1)]), nn.functional.cross_entropy
        audio = audio[heard]
        return {
            "phonemes": entropy(named, phonemes),
            "heard_words": sum(
                entropy(self.heads[name](audio), words[:, column]) for column, name in enumerate(("word", "word_before"))
            ),
            "acoustics": nn.functional.mse_loss(self.heads["acoustics"](audio), described),
        }

    def _writing(self, rows: list[PretrainRow], audio: torch.Tensor) -> dict[str, torch.Tensor]:
        """Cross-entropy of the text, and of where the guided heads listen."""
        model, prompt = self._network.model, self._family.prompt_ids
        embed, language = model.get_input_embeddings(), model.model.language_model
        before = torch.tensor([[prompt.bos, prompt.begin_instruction, prompt.begin_audio]])
        start, tokens = before.shape[1], audio.shape[1]
        after = [
            [prompt.end_instruction, *(prompt.languages["en"] if spoken else []), prompt.transcribe]
            for spoken in self._rng.random(len(rows)) >= _WITHOUT_LANGUAGE
        ]
        length = max(len(first) + len(row.target) for first, row in zip(after, rows, strict=True))
        ids, labels = torch.full((2, len(rows), length), prompt.pad)
        labels.fill_(IGNORED)
        spoken = torch.zeros(len(rows), length, dtype=torch.bool)
        listened = torch.zeros(len(rows), length, tokens, dtype=torch.bool)
        for index, (first, row) in enumerate(zip(after, rows, strict=True)):
            written = first + row.target
            ids[index, : len(written)] = torch.tensor(written)
            target = torch.tensor(row.target)
            labels[index, len(first) : len(written)] = target.where(torch.from_numpy(row.learned), IGNORED)
            spoken[index, len(first) : len(written)] = row.tokens > 0
            for place, (begin, end) in enumerate(row.spans):  # where it is written, one position before the token itself
                listened[index, len(first) - 1 + place, begin:end] = True
        embeds = torch.cat([embed(before).expand(len(rows), -1, -1), audio, embed(ids)], dim=1)
        positions = torch.cat([torch.arange(start + tokens), start + CHUNK_TOKENS + torch.arange(length)])[None]
        # Without a mask, transformers takes the jump of the positions for the border of two packed rows.
        mask = torch.ones(embeds.shape[:2], dtype=torch.long)
        run = language(
            inputs_embeds=embeds, attention_mask=mask, position_ids=positions, use_cache=False, output_hidden_states=True
        )  # fmt: skip
        wanted = labels[:, 1:] != IGNORED
        hidden = run.last_hidden_state[:, start + tokens : -1][wanted]
        return {
            "text": nn.functional.cross_entropy(model.lm_head(hidden), labels[:, 1:][wanted]),
            "listening": _listening(language, run.hidden_states, positions, start, listened),
            "manner": self._tell_manner(rows, run.hidden_states[-2][:, start + tokens : -1][spoken[:, 1:]]),
        }

    def _tell_manner(self, rows: list[PretrainRow], hidden: torch.Tensor) -> torch.Tensor:
        """The error of `manner` read from what enters the last layer, [target tokens of the spoken rows, hidden]: an adapter can
        turn it into tags only if it has come to the text."""
        if not len(hidden):
            return hidden.new_zeros(())
        wanted = self._normal_manner(np.concatenate([row.manner for row in rows if row.tokens]))
        return nn.functional.mse_loss(self.heads["manner"](hidden), wanted)


def _listening(
    language: nn.Module, states: tuple[torch.Tensor, ...], positions: torch.Tensor, start: int, listened: torch.Tensor
) -> torch.Tensor:
    """-log of the attention that the first head of each inner layer pays to `listened` [B, text positions, audio tokens]."""
    rows, tokens = listened.any(-1), listened.shape[-1]
    total = states[0].new_zeros(())
    if not rows.any():
        return total
    cosine, sine = language.rotary_emb(states[0], positions)
    for index in range(1, len(language.layers) - 1):
        layer, size = language.layers[index], language.config.head_dim
        normed = layer.input_layernorm(states[index])
        query = nn.functional.linear(normed, layer.self_attn.q_proj.weight[:size])[:, None]
        key = nn.functional.linear(normed, layer.self_attn.k_proj.weight[:size])[:, None]
        query, key = (each[:, 0] for each in apply_rotary_pos_emb(query, key, cosine, sine))
        scores = query[:, start + tokens :] @ key.transpose(1, 2) * layer.self_attn.scaling
        future = torch.ones(scores.shape[1:], dtype=torch.bool).triu(start + tokens + 1)
        shares = scores.masked_fill(future, -torch.inf).log_softmax(-1)[..., start : start + tokens]
        total = total - shares.masked_fill(~listened, -torch.inf)[rows].logsumexp(-1).mean()
    return total


def _make_rows(config: TinyBaseConfig, family: Offline) -> tuple[list[PretrainRow], int, int]:
    """Speak the training sentences. Returns (rows, phoneme classes, distinct words)."""
    grammar, synthesizer = Grammar.load(config.grammar), Synthesizer()
    rng = np.random.default_rng(config.seed)
    phonemes, words = {"": 0}, {"": 0}
    rows = []
    for index, script in enumerate(draw_scripts(grammar, {"train": config.clips}, untagged_share=0.3, seed=config.seed)):
        clip = synthesizer.render(script.text, VOICES[rng.integers(len(VOICES))], seed=config.seed * 1_000_003 + index)
        tagged = _with_random_tags(strip_tags(script.text), rng) if rng.random() < _WITH_RANDOM_TAGS else strip_tags(script.text)
        rows.append(_spoken_row(family, clip, tagged, phonemes, words))
    text_rows = round(config.clips * config.text_only_share / (1 - config.text_only_share))
    silence = _sounding(family, np.zeros(1, np.float32))
    nothing = np.zeros((0, 2), np.int64), np.zeros(0, np.int64), np.zeros((0, _DESCRIPTORS), np.float32)
    for script in draw_scripts(grammar, {"train": text_rows}, untagged_share=0.0, seed=config.seed + 1):
        length = rows[rng.integers(config.clips)].length
        target, manner = _target(family, script.text), np.zeros((0, _MANNER), np.float32)
        rows.append(PretrainRow(silence, target, np.ones(len(target), bool), *nothing, [], manner, length))
    return rows, len(phonemes), len(words) - 1


def _spoken_row(family: Offline, clip: SpokenClip, text: str, phonemes: dict[str, int], words: dict[str, int]) -> PretrainRow:
    """New phonemes and words join their classes."""
    mel = _sounding(family, clip.samples)
    tokens = -(-mel.shape[1] // FRAMES_PER_TOKEN)
    classes, before, place = np.zeros((tokens, 2), np.int64), 0, 0
    spans = []
    for word in clip.words:
        begin = int(word["start_s"] / TOKEN_S)
        end = max(int(np.ceil(word["end_s"] / TOKEN_S)), begin + 1)
        spans.append((begin, end))
        classes[place:begin, 1] = before
        classes[begin:end] = words.setdefault(word["word"], len(words)), before
        before, place = classes[begin, 0], end
    classes[place:, 1] = before
    labels = phoneme_frames(clip.phonemes, samples_to_seconds(len(clip.samples)), 0, 4 * tokens, phonemes)
    padded = family.restore_silence(mel, 0, tokens * FRAMES_PER_TOKEN)
    description = acoustics.describe(clip.samples, padded)
    description = np.concatenate([description, acoustics.surroundings(description, padded)], axis=1)
    target = _target(family, text)
    word_of, learned = _words_of(family, target)
    manner = _manner(description, spans)[[*word_of, -1]]
    ends = [*spans, (tokens - 1, tokens)]
    spans = [ends[word] for word in word_of]
    return PretrainRow(mel.astype(np.float16), target, learned, classes, labels, description, spans, manner, tokens)


def _with_random_tags(text: str, rng: np.random.Generator) -> str:
    """One to three tags before random words, or at the end."""
    words = text.split()
    for tag in rng.choice(BASE_TAGS, size=rng.integers(1, 4), replace=False):
        words.insert(int(rng.integers(len(words) + 1)), f"[{tag}]")
    return " ".join(words)


def _manner(description: np.ndarray, words: list[tuple[int, int]]) -> np.ndarray:
    """How each word and the end sound: float32 [words + 1, 4 × 38 + 2]. The mean acoustic description of the first and the second
    half of the pause before, of the word, and of the two seconds from its start; the pause's length in seconds; and the
    words that begin in those two seconds."""
    two_s = round(2 / TOKEN_S)
    rows, end = [], 0
    for begin, stop in [*words, (len(description) - 1, len(description))]:
        middle, edge = (end + begin + 1) // 2, max(begin, end + 1)
        parts = (
            description[end : max(middle, end + 1)], description[min(middle, edge - 1) : edge],
            description[begin:stop], description[begin : begin + two_s],
        )  # fmt: skip
        begun = sum(begin <= first < begin + two_s for first, _ in words)
        pause_s = max(begin - end, 0) * TOKEN_S
        rows.append(np.concatenate([*(part.mean(axis=0) for part in parts), [pause_s, begun]]))
        end = min(stop, len(description) - 1)
    return np.stack(rows).astype(np.float32)


def _words_of(family: Offline, target: list[int]) -> tuple[list[int], np.ndarray]:
    """For each target token but EOS, the word that it belongs to, or that its tag stands before; the space before a word belongs
    to it. And bool [target], false for a token of a tag."""
    words, learned, written = [], [], ""
    for token in target[:-1]:
        written += family.tokenizer.decode([token])
        is_tag = "[" in written and (written.rindex("[") > written.rfind("]") or written.endswith("]"))
        plain = strip_tags(written + "]" if written.rfind("[") > written.rfind("]") else written)
        words.append(len(plain.split()) - (not is_tag))
        learned.append(not is_tag)
    for place in reversed(range(len(learned) - 1)):  # a space alone goes with what follows
        if not family.tokenizer.decode([target[place]]).strip():
            words[place], learned[place] = words[place + 1], learned[place + 1]
    return words, np.array([*learned, True])


def _target(family: Offline, text: str) -> list[int]:
    return [*encode_text(family.tokenizer, text), family.prompt_ids.eos]


def _sounding(family: Offline, samples: np.ndarray) -> np.ndarray:
    return family.trim_silence(family.mel(samples, CHUNK_FRAMES))[0]
