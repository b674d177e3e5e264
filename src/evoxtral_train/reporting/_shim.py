"""MERGE: delete this module. Until the declared comparisons are in scoring/significance.py, it gives today's ones that form;
then `results.py` and `evaluation.py` import `sentence` and `outcome_of` from there, and the stages pass on what they compare."""

from ..scoring.significance import ALPHA, MEASURES, TESTED, signed


def declared(comparisons: list[dict], filtered: dict[str, str]) -> list[dict]:
    pairs = {(pair["before"], pair["after"]): pair for pair in comparisons}
    names = list(dict.fromkeys(name for pair in pairs for name in pair))
    leading = [name for name in names if name not in filtered]
    wanted = [*zip(leading, leading[1:], strict=False), *((own, name) for name, own in filtered.items())]
    found = []
    for both in sorted(set(wanted) & set(pairs), key=lambda both: names.index(both[1])):
        measures = {}
        for name in TESTED:
            measure = pairs[both]["measures"][name]
            more = {"level": ALPHA, "shown": measure["p"] is not None and measure["p"] < ALPHA, "units": measure["clips"]}
            low, high = measure["low"], measure["high"]
            measures[name] = measure | more | {"smallest_difference": None if low is None else (high - low) / 2 * 1.43}
        found.append({"before": both[0], "after": both[1], "primary": "micro_f1", "measures": measures})
    return found


def sentence(comparison: dict) -> str:
    parts = [f"{MEASURES[name]} {_said(measure)}" for name, measure in comparison["measures"].items()]
    return f"{comparison['after']} against {comparison['before']}: {'; '.join(parts)}."


def outcome_of(measure: dict) -> str:
    if not measure["shown"]:
        return "not shown"
    return "higher" if measure["value"] > 0 else "lower"


def _said(measure: dict) -> str:
    if measure["value"] is None:
        return "is not defined for one of the two"
    if measure["shown"]:
        return f"{outcome_of(measure)} by {signed(measure)}"
    return f"no difference shown ({signed(measure)}; one of {measure['smallest_difference']:.3f} could have been)"
