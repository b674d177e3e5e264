"""The layer rule of the design, held by reading every import."""

import ast
import subprocess
import sys

from conftest import REPO

PACKAGE = REPO / "src" / "evoxtral_train"
LAYERS = [
    {"cli"}, {"stages"}, {"serving"}, {"reporting"}, {"tiny_bases"}, {"decoding"}, {"training"}, {"modeling"}, {"dataset"},
    {"families"}, {"corpus"}, {"synthesis"}, {"data"}, {"raft"}, {"scoring"}, {"text"}, {"tracking"}, {"runs", "progress"},
    {"run_folders"}, {"records"}, {"config"}, {"processes"}, {"files", "reading"}, {"units", "errors", "shipped", "plain_text"},
]  # fmt: skip
# `config` checks tag names and the pre-padding's default, so the text and unit modules lie below it.
BELOW_CONFIG = {"text.tags", "units", "errors"}


def _rank(layer: str) -> int:
    return next(i for i, layers in enumerate(LAYERS) if layer in layers)


def _imports(path):
    """(layer, dotted module) of everything that a module of the package imports from the package."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = [*parts[: len(parts) - node.level], *(node.module.split(".") if node.module else [])]
            for name in [".".join([*base, alias.name]) if not node.module else ".".join(base) for alias in node.names]:
                yield name.split(".")[0], name
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names = [node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            for name in names:
                assert not name.startswith("evoxtral_train"), f"{path}: import relatively"


def test_imports_go_downward_only():
    upward = []
    for path in PACKAGE.rglob("*.py"):
        own = path.relative_to(PACKAGE).with_suffix("").parts[0]
        if own == "__init__":
            continue
        for layer, module in _imports(path):
            if layer != own and _rank(layer) <= _rank(own) and not (own == "config" and module in BELOW_CONFIG):
                upward.append(f"{path.relative_to(PACKAGE)} imports {module}")
    assert upward == []


def test_every_module_has_a_layer():
    names = {path.relative_to(PACKAGE).with_suffix("").parts[0] for path in PACKAGE.rglob("*.py")} - {"__init__"}
    assert names <= set().union(*LAYERS)


def test_config_errors_scoring_and_curation_need_no_torch():
    modules = [
        "cli.main", "config.loader", "config.data", "config.training", "config.evaluation", "runs",
        "records", "tracking", "text.tags", "text.normalize",
        "scoring.metrics", "raft.reward", "raft.curation", "stages.raft.score", "stages.raft.curate",
        "stages.eval_predictions", "stages.compare", "stages.cache",
        "stages.data.import_", "stages.data.stats", "stages.data.pack", "stages.data.check",
        "text.taxonomy",
    ]  # fmt: skip
    code = "import sys, importlib\n" + "".join(f"importlib.import_module('evoxtral_train.{name}')\n" for name in modules)
    code += "assert 'torch' not in sys.modules and 'transformers' not in sys.modules, 'torch was imported'"
    subprocess.run([sys.executable, "-c", code], check=True)
