"""`evoxtral tiny-base`: train the small base checkpoint and measure how well it transcribes."""

import json
from pathlib import Path

import numpy as np
import torch

from .. import shipped
from ..config.training import TinyBaseConfig
from ..dataset.rows import text_tokenizer
from ..decoding.decoder import Decoding, Request, decode
from ..decoding.sampling import Sampling
from ..families.checkpoint import load_processor
from ..families.realtime.clock import Clock
from ..families.realtime.features import log_mel
from ..files import fingerprint_files
from ..modeling.audio_cache import LiveAudio
from ..modeling.saving import save_errors
from ..progress import Progress, format_seconds
from ..records import Prediction
from ..runs import Options, Run, check_output
from ..scoring.metrics import evaluate
from ..synthesis.scripts import Grammar, draw_scripts
from ..synthesis.synthesizer import VOICES, Synthesizer
from ..text.tags import find_tags, strip_tags
from ..tiny_bases.pretraining import ROOM_TOKENS, pretrain
from ..tiny_bases.realtime import tiny_model, write_processor
from ..tracking import Tracker
from ..units import FRAMES_PER_TOKEN, SILENCE_LOG_MEL, samples_to_tokens
from .report import Report


def run(config: TinyBaseConfig, options: Options) -> Report:
    """Writes the checkpoint (bfloat16), the processor's files, `README.md` and the metrics."""
    facts = {"sentences": config.clips, "epochs": config.epochs, "output": config.output}
    resolved, inputs = config.model_dump(mode="json"), {"grammar": fingerprint_files([shipped.find(config.grammar)])}
    if options.dry_run:
        check_output(config.output, "tiny-base", resolved, inputs, options)
        return Report("plan: tiny-base", facts)
    run = Run.open(config.output, "tiny-base", resolved, inputs, options, [config.grammar])
    torch.manual_seed(config.seed)
    vocabulary = write_processor(run.path, config.vocabulary_ranks)
    model = tiny_model(vocabulary, config.audio_width, config.audio_layers, config.text_width, config.text_layers)
    model.config.save_pretrained(run.path)
    processor = load_processor(run.path)
    with Tracker(config.tracking, "tiny-base", run.path, config) as tracker:
        bar = None

        def report(measures: dict) -> None:
            nonlocal bar
            bar = bar or Progress("training", measures["steps"], "steps")
            bar.advance(measures["step"] - bar.done, f"loss {measures['text']:.3f}")
            tracker.log({f"train/{name}": value for name, value in measures.items()}, step=measures["step"])

        metrics = pretrain(config, model, processor, report)
        with save_errors(run.path):
            model.to(torch.bfloat16).save_pretrained(run.path)  # half the size; the saved weights are the measured ones
        metrics |= transcribe_held_out(config, model.float().eval(), processor)
        metrics["parameters"] = sum(parameter.numel() for parameter in model.parameters())
        tracker.summary(metrics)
        write_readme(run.path, config, metrics)
    run.finish(metrics, fingerprint_files(run.path.glob("*.safetensors")))
    facts |= {
        "parameters": f"{metrics['parameters']:,}",
        "WER on held-out speech": f"{metrics['wer']:.3f} [{metrics['wer_low']:.3f}, {metrics['wer_high']:.3f}]",
        "time": format_seconds(metrics["train_s"]),
    }
    return Report("tiny-base", facts)


class _Mels:
    """Mels held in memory, for the decoder."""

    def __init__(self, mels: list[np.ndarray]):
        self._mels = mels

    def mel_of(self, index: int, tokens: int) -> np.ndarray:
        mel = self._mels[index][:, : tokens * FRAMES_PER_TOKEN]
        return np.pad(mel, ((0, 0), (0, tokens * FRAMES_PER_TOKEN - mel.shape[1])), constant_values=SILENCE_LOG_MEL)


def transcribe_held_out(config: TinyBaseConfig, model, processor) -> dict:
    """WER of greedy streaming transcription on sentences from the grammar's test share: half of the
    clips plain, half with all kinds of tags in the voice."""
    clock, tokenizer, synthesizer = Clock.of(processor), text_tokenizer(processor), Synthesizer()
    scripts = draw_scripts(Grammar.load(config.grammar), {"test": config.held_out_clips}, 0.5, config.seed + 1)
    mels, requests = [], []
    for index, script in enumerate(scripts):
        samples = synthesizer.render(script.text, VOICES[index % len(VOICES)], seed=config.seed + index).samples
        row_tokens = clock.stock_tokens(len(samples), 0) + ROOM_TOKENS
        mels.append(log_mel(samples, row_tokens, processor.feature_extractor, clock))
        requests.append(Request.of(script.id, "packed", clock, samples_to_tokens(len(samples)), row_tokens, index))
    heard = {}
    decoding = Decoding(candidates=1, sampling=Sampling(), max_new_tokens=10_000, batch_tokens=8192)
    for completions in decode(model, clock, LiveAudio(model, _Mels(mels)), requests, decoding):
        heard |= {row.utterance_id: tokenizer.decode(row.token_ids) for row in completions}
    rows = [Prediction(script.id, strip_tags(script.text), strip_tags(heard[script.id])) for script in scripts]
    plain = [row for row, script in zip(rows, scripts, strict=True) if not find_tags(script.text)]
    measures = {"held_out_clips": len(rows), "plain_clips": len(plain)}
    for name, chosen in (("wer", rows), ("plain_wer", plain)):
        wer = evaluate(chosen, with_words=True)["wer"]["micro"]
        measures |= {name: wer["value"], f"{name}_low": wer["low"], f"{name}_high": wer["high"]}
    return measures


def write_readme(folder: Path, config: TinyBaseConfig, metrics: dict) -> None:
    """Describes the checkpoint, how it was made and how well it transcribes, from the run's record."""
    wer, plain = (
        f"{metrics[name]:.3f} | [{metrics[f'{name}_low']:.3f}, {metrics[f'{name}_high']:.3f}]" for name in ("wer", "plain_wer")
    )
    recipe = json.dumps(config.model_dump(mode="json", exclude={"tracking"}), indent=2)
    (folder / "README.md").write_text(
        f"""# A tiny base for tests and the demo

`VoxtralRealtimeForConditionalGeneration` with {metrics["parameters"]:,} parameters and real processor files, trained from
scratch by `evoxtral tiny-base configs/tiny-base.yaml` in {format_seconds(metrics["train_s"])} on 2 cores. It is not a general
speech recogniser: it knows the {metrics["words"]} words of `data/scripts/grammar.yaml`, spoken by espeak-ng.

It was trained to transcribe in the base model's own streaming format (each word 480 ms after it was heard). It heard speech
in every style and every sound that the demo's tags name, but never a tag together with its sound. To learn the tags'
subwords, it saw words and tags as text over silence, also in the streaming format. So it knows neither `packed` nor
`deferred`. During training two linear heads on its audio path, since discarded, predicted phonemes and acoustic features
(loudness, pitch, voicing, brightness, silence).

| measured on {metrics["held_out_clips"]} held-out clips, greedy | value | 95% bootstrap interval |
|---|---|---|
| WER, speech without tags ({metrics["plain_clips"]} clips) | {plain} |
| WER, all clips (whispered, shouted, hurried …) | {wer} |

Neither these held-out sentences nor those of the demo were trained on.

The vocabulary in `tekken.json` is the first {config.vocabulary_ranks:,} ranks of mistral-common's vocabulary (Apache-2.0).

```json
{recipe}
```
""",
        "utf-8",
    )
