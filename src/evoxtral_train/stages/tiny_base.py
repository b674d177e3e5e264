"""`evoxtral tiny-base`: train the small base checkpoint and measure how well it transcribes."""

import json
from pathlib import Path
from types import ModuleType

import torch

from .. import shipped
from ..config.training import TinyBaseConfig
from ..files import fingerprint_files
from ..modeling.weights import save_errors
from ..progress import Progress, format_seconds
from ..runs import Options, Run, check_output
from ..tiny_bases import offline, realtime
from ..tiny_bases.held_out import transcribe_held_out
from ..tiny_bases.pretraining import pretrain
from ..tracking import Tracker
from .report import Report

_TEACHERS = {"voxtral_realtime": realtime, "voxtral": offline}


def run(config: TinyBaseConfig, options: Options) -> Report:
    """Writes the checkpoint (bfloat16), the processor's files, `README.md` and the metrics."""
    facts = {"sentences": config.clips, "epochs": config.epochs, "output": config.output}
    resolved, inputs = config.model_dump(mode="json"), {"grammar": fingerprint_files([shipped.find(config.grammar)])}
    if options.dry_run:
        check_output(config.output, "tiny-base", resolved, inputs, options)
        return Report("plan: tiny-base", facts)
    run = Run.open(config.output, "tiny-base", resolved, inputs, options, [config.grammar])
    teacher = _TEACHERS[config.family]
    torch.manual_seed(config.seed)
    family, network = teacher.make(run.path, config)
    torch.manual_seed(config.seed)
    lessons = teacher.Lessons(config, network, family)
    with Tracker(config.tracking, "tiny-base", run.path, config) as tracker:
        bar = None

        def report(measures: dict) -> None:
            nonlocal bar
            bar = bar or Progress("training", measures["steps"], "steps")
            bar.advance(measures["step"] - bar.done, f"loss {measures['text']:.3f}")
            tracker.log({f"train/{name}": value for name, value in measures.items()}, step=measures["step"])

        metrics = pretrain(config, network, lessons, report)
        with save_errors(run.path):
            # Half the size; the saved weights are the measured ones.
            network.model.to(torch.bfloat16).save_pretrained(run.path)
        network.model.float().eval()
        metrics |= transcribe_held_out(config, network, family, family.own_layout(teacher.ROOM_TOKENS), teacher.measure)
        metrics["parameters"] = sum(parameter.numel() for parameter in network.model.parameters())
        tracker.summary(metrics)
        write_readme(run.path, config, metrics, family.stock_class, teacher)
    run.finish(metrics, fingerprint_files(run.path.glob("*.safetensors")))
    facts |= {
        "parameters": f"{metrics['parameters']:,}",
        "WER on held-out speech": f"{metrics['wer']:.3f} [{metrics['wer_low']:.3f}, {metrics['wer_high']:.3f}]",
        "time": format_seconds(metrics["train_s"]),
    }
    return Report("tiny-base", facts)


def write_readme(folder: Path, config: TinyBaseConfig, metrics: dict, stock_class: str, teacher: ModuleType) -> None:
    """Describes the checkpoint, how it was made and how well it transcribes, from the run's record."""
    wer, plain = (
        f"{metrics[name]:.3f} | [{metrics[f'{name}_low']:.3f}, {metrics[f'{name}_high']:.3f}]" for name in ("wer", "plain_wer")
    )
    threads = torch.get_num_threads()
    cores = f"{threads} core{'s' if threads > 1 else ''}"
    recipe = json.dumps(config.model_dump(mode="json", exclude={"tracking"}), indent=2)
    (folder / "README.md").write_text(
        f"""# A tiny base for tests and the demo

`{stock_class}` with {metrics["parameters"]:,} parameters and real processor files, trained from
scratch by `evoxtral tiny-base {teacher.RECIPE}` in {format_seconds(metrics["train_s"])} on {cores}.
It is not a general speech recogniser: it knows the {metrics["words"]} words of `data/scripts/grammar.yaml`, spoken by espeak-ng.

{teacher.FORM}

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
