"""`evoxtral raft run`: generate, score, curate and train, one after the other."""

from functools import partial

from .. import processes
from ..config.schema import RaftConfig
from ..runs import Options, is_complete
from . import curate, generate, raft_folders, raft_train, score
from .plans import plan_curated, plan_steps
from .report import Report

_STEPS = (
    ("generate", generate, raft_folders.candidates),
    ("score", score, raft_folders.scores),
    ("curate", curate, raft_folders.curated),
    ("train", raft_train, raft_folders.trained),
)
_BY_RULE = (score, curate)  # of several processes the first does these


def run(config: RaftConfig, options: Options) -> Report:
    """With `--resume` the finished steps are skipped; what they were made from is checked by the next."""
    if options.dry_run:
        facts = generate.plan(config, Options(resume=True)).facts
        steps = plan_steps(plan_curated(config.dataset, config.split, config.curate), config.train)
        facts |= {"then": "score, curate", "curated rows": steps["rows"], "training steps": steps["steps"]}
        return Report("plan: raft run", facts | {"output": config.output})
    processes.join(config.model.device)
    facts = {}
    for name, stage, folder in _STEPS:
        output = folder(config)
        if options.resume and processes.first(partial(is_complete, output)):
            facts[name] = f"finished before: {output}"
            continue
        work = partial(stage.run, config, options)
        report = processes.first(work) if stage in _BY_RULE else work()
        facts |= {f"{name}: {key}": value for key, value in report.facts.items()}
    return Report("raft run", facts)
