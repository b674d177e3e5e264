"""Gates for CI: limits on a system's measures, tested on the value itself or on the worse end of its interval."""

from ..config.evaluation import Gates

_LEAST = {"micro_f1_min": ("micro", "f1"), "macro_f1_min": ("macro", "f1"), "card_f1_min": ("card", "f1"),
          "micro_precision_min": ("micro", "precision"), "micro_recall_min": ("micro", "recall")}  # fmt: skip
_MOST = {"micro_hallucination_max": ("micro", "hallucination"), "wer_max": ("wer", "micro"), "cer_max": ("cer", "micro"),
         "false_tags_per_untagged_clip_max": ("false_tags_per_untagged_clip",)}  # fmt: skip


def failed_gates(gates: Gates, systems: dict[str, dict], wer_rise: dict | None = None) -> list[str]:
    """A sentence for each failed gate. A missing measure fails. `wer_rise`: the paired difference in WER from the baseline,
    {value, high}."""
    report, failed = systems[gates.system], []
    for name, path in _LEAST.items():
        limit = getattr(gates, name)
        if limit is not None:
            value = _find(report, path, "low" if gates.confident else "value")
            if value is None or value < limit:
                failed.append(_sentence(gates, name, value, "at least", limit))
    for name, path in _MOST.items():
        limit = getattr(gates, name)
        if limit is not None:
            value = _find(report, path, "high" if gates.confident else "value")
            if value is None or value > limit:
                failed.append(_sentence(gates, name, value, "at most", limit))
    if gates.wer_regression_max is not None:
        rise = (wer_rise or {}).get("high" if gates.confident else "value")
        if rise is None or not within(rise, gates.wer_regression_max):
            failed.append(_sentence(gates, "wer_regression_max", rise, "at most", gates.wer_regression_max))
    return failed


def within(rise: float, most: float) -> bool:
    """Whether a difference of two rates keeps to a limit. Rounding does not decide:

    >>> 0.05 - 0.04 <= 0.01, within(0.05 - 0.04, 0.01)
    (False, True)
    """
    return rise <= most + 1e-9


def _find(report: dict, path: tuple[str, ...], end: str) -> float | None:
    for name in path:
        report = report.get(name) or {}
    return report.get(end)


def _sentence(gates: Gates, name: str, value: float | None, bound: str, limit: float) -> str:
    measured = "not measured" if value is None else f"{value:.4f}"
    return f"gate {name} of {gates.system}: {measured}, but must be {bound} {limit:g}"
