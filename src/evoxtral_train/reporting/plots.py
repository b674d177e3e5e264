"""Plots as PNG, in one style.

Names come from data: there may be thousands, with any content. So a plot shows at most `MOST` of them and sums up the rest; names
are shortened and never parsed as mathematics. And no plot fails: if one cannot be drawn, the picture says so.
"""

import io
import sys
import warnings
from collections.abc import Callable, Collection, Sequence
from functools import wraps
from itertools import chain, cycle

import matplotlib
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from ..plain_text import one_line

MOST = 40  # names in one plot
_MOST_CHARACTERS = 40  # of a name
_COLOR, _FAINT, _GREY = "#3b6ea5", "#d9dee5", "#8a939c"
_PALETTE = ("#3b6ea5", "#e0a33e", "#4f9d69", "#b5566b")
_DPI = 220  # twice the size on the page, for high-resolution screens
_MOST_INCHES = 60.0


def _never_fails(plot: Callable[..., bytes]) -> Callable[..., bytes]:
    """An evaluation takes hours, a picture seconds: a failed picture must not lose the evaluation."""

    @wraps(plot)
    def drawn(*arguments, **named) -> bytes:
        with warnings.catch_warnings(), matplotlib.rc_context({"text.parse_math": False}):
            warnings.simplefilter("ignore")  # missing glyphs, tight layouts: nothing a user could fix
            try:
                return plot(*arguments, **named)
            except Exception as error:  # noqa: BLE001 - whatever it is, the page does without this picture
                reason = f"{type(error).__name__}: {one_line(error, 100)}"
                print(f"a picture could not be drawn: {reason}", file=sys.stderr)
                figure, axes = _figure(7.2, 1.0)
                axes.set_axis_off()
                axes.text(0, 0.5, f"This picture could not be drawn: {reason}", fontsize=9)
                return _png(figure)

    return drawn


@_never_fails
def histogram(edges: Sequence[float], counts: Sequence[int], label: str) -> bytes:
    """Counts over bins of equal width; `edges` are their lower ends."""
    figure, axes = _figure(7.2, 3.0)
    width = edges[1] - edges[0] if len(edges) > 1 else 1.0
    axes.bar(edges, counts, width=width, align="edge", color=_COLOR, edgecolor="white", linewidth=0.5)
    axes.set_xlabel(label)
    axes.set_ylabel("clips")
    axes.set_xlim(left=0)
    return _png(figure)


@_never_fails
def columns(names: Sequence[str], values: Sequence[float], label: str, y_label: str) -> bytes:
    """A few columns with their values above them."""
    figure, axes = _figure(7.2, 3.0)
    names, [values] = _bounded(names, [values], range(len(names)))
    drawn = axes.bar(range(len(names)), values, color=_COLOR, width=0.7)
    axes.set_xticks(range(len(names)), names, rotation=90 if len(names) > 20 else 0)
    axes.bar_label(drawn, [f"{value:,g}" for value in values], padding=2, fontsize=8)
    axes.set_xlabel(label)
    axes.set_ylabel(y_label)
    axes.margins(y=0.15)
    return _png(figure)


@_never_fails
def stacked_rows(names: Sequence[str], series: dict[str, Sequence[float]], label: str, decimals: int = 0) -> bytes:
    """One horizontal bar per name, stacked by series, with its total at the end."""
    most_frequent = sorted(range(len(names)), key=lambda place: -sum(values[place] for values in series.values()))
    names, shown = _bounded(names, list(series.values()), most_frequent)
    figure, axes = _figure(7.2, 0.7 + 0.27 * len(names))
    totals = [0.0] * len(names)
    for part, values, color in zip(series, shown, _PALETTE, strict=False):
        axes.barh(range(len(names)), values, left=totals, color=color, height=0.7, label=_name(part))
        totals = [total + value for total, value in zip(totals, values, strict=True)]
    most = max([*totals, 1e-9])
    for place, total in enumerate(totals):
        axes.text(total + 0.01 * most, place, f"{total:,.{decimals}f}", va="center", fontsize=8)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.1 * most)
    axes.set_xlabel(label)
    axes.grid(axis="y", visible=False)
    _legend(axes, len(series))
    return _png(figure)


@_never_fails
def intervals(
    names: Sequence[str],
    series: dict[str, Sequence[tuple[float, float, float] | None]],
    label: str,
    grey: Collection[str] = (),
) -> bytes:
    """A point with its interval (value, low, high) for each name and series; None: nothing to show. The first name is set apart
    from the others, of which the first `MOST` are shown; series in `grey` are there for comparison. Small enough to read on a
    phone."""
    names = [_name(name) for name in names[: MOST + 1]]
    series = {part: values[: MOST + 1] for part, values in series.items()}
    figure, axes = _figure(5.6, 0.9 + 0.13 * len(names) * max(2, len(series)))
    step = 0.64 / max(len(series), 1)
    places = [place + 0.4 * (place > 0) for place in range(len(names))]
    colors = _colors()
    for number, (part, values) in enumerate(series.items()):
        offset = (number - (len(series) - 1) / 2) * step
        shown = [(at + offset, *value) for at, value in zip(places, values, strict=True) if value is not None]
        color = "#8a939c" if part in grey else next(colors)
        if shown:
            at, value, low, high = zip(*shown, strict=True)
            reach = [[v - a for v, a in zip(value, low, strict=True)], [b - v for v, b in zip(value, high, strict=True)]]
            axes.errorbar(value, at, xerr=reach, fmt="o", markersize=3.5, color=color, elinewidth=1.2, label=_name(part))
    axes.set_yticks(places, names)
    axes.tick_params(labelsize=9.5, length=0)
    axes.get_yticklabels()[0].set_weight("bold")
    axes.grid(axis="y", visible=False)
    axes.set_ylim(places[-1] + 0.5, -0.5)
    axes.set_xlim(-0.02, 1.02)
    axes.set_xlabel(label)
    _legend(axes, len(series))
    return _png(figure)


@_never_fails
def gaps(
    groups: dict[str, Sequence[str]],
    series: dict[str, dict[str, tuple[float, float, float]]],
    bar: tuple[str, str],
    label: str,
) -> bytes:
    """`groups`: heading -> names. For each name a point with its interval (value, low, high) of each series, and a bar between
    two of them. At most `MOST` names."""
    rows = [(heading, name) for heading, names in groups.items() for name in (None, *names)][: MOST + len(groups)]
    figure, axes = _figure(5.6, 0.9 + 0.3 * len(rows))
    before, after = (series.get(part, {}) for part in bar)
    step = 0.5 / max(len(series) - 1, 1)
    for place, (_, name) in enumerate(rows):
        if name in before and name in after:
            axes.plot([after[name][0], before[name][0]], [place, place], color=_FAINT, linewidth=11, zorder=0)
    for number, ((part, values), color) in enumerate(zip(series.items(), chain((_GREY,), _colors()), strict=False)):
        shown = [(place + number * step - 0.25, *values[name]) for place, (_, name) in enumerate(rows) if name in values]
        at, value, low, high = zip(*shown, strict=True) if shown else ((), (), (), ())
        reach = [[v - a for v, a in zip(value, low, strict=True)], [b - v for v, b in zip(value, high, strict=True)]]
        axes.errorbar(value, at, xerr=reach, fmt="o", markersize=4.5, color=color, elinewidth=1, label=_name(part))
    axes.set_yticks(range(len(rows)), [_name(name or heading) for heading, name in rows])
    for tick, (_, name) in zip(axes.get_yticklabels(), rows, strict=True):
        tick.set_weight("normal" if name else "bold")
    axes.tick_params(labelsize=9.5, length=0)
    axes.grid(axis="y", visible=False)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlim(-0.02, 1.02)
    axes.set_xlabel(label)
    _legend(axes, len(series))
    return _png(figure)


@_never_fails
def lines(
    series: dict[str, Sequence[tuple[float, float]]],
    x_label: str,
    y_label: str,
    *,
    points: bool = False,
    diagonal: bool = False,
    unit_square: bool = False,
    y_scale: str = "linear",
) -> bytes:
    """One line per series of (x, y). `diagonal`: also draw x = y, where the two should agree."""
    figure, axes = _figure(7.2, 3.6)
    if diagonal:
        axes.plot([0, 1], [0, 1], color="#888888", linewidth=1, linestyle="--")
    for (part, values), color in zip(series.items(), _colors(), strict=False):
        x, y = zip(*values, strict=True) if values else ((), ())
        axes.plot(x, y, color=color, linewidth=1.4, marker="o" if points else None, markersize=4, label=_name(part))
    if unit_square:
        axes.set_xlim(-0.02, 1.02)
        axes.set_ylim(-0.02, 1.02)
    axes.set_yscale(y_scale)
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("")  # on a logarithmic scale it would use mathematical notation
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    _legend(axes, len(series))
    return _png(figure)


@_never_fails
def bands(series: dict[str, Sequence[tuple[float, float, float, float]]], x_label: str, y_label: str) -> bytes:
    """One line with its band per series of (x, value, low, high); values are shares."""
    figure, axes = _figure(7.2, 3.6)
    for (part, values), color in zip(series.items(), _colors(), strict=False):
        x, value, low, high = zip(*values, strict=True)
        axes.plot(x, value, color=color, marker="o", markersize=4, linewidth=1.4, label=_name(part))
        axes.fill_between(x, low, high, color=color, alpha=0.15, linewidth=0)
    axes.set_ylim(-0.02, 1.02)
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    _legend(axes, len(series))
    return _png(figure)


@_never_fails
def distributions(series: dict[str, Sequence[float]], label: str) -> bytes:
    """One box plot per series: median, quartiles, whiskers, outliers; the mean as a point."""
    figure, axes = _figure(7.2, 0.9 + 0.4 * len(series))
    axes.boxplot(
        list(series.values()), orientation="horizontal", tick_labels=list(map(_name, series)), showmeans=True, widths=0.6,
        patch_artist=True,
        boxprops={"facecolor": _FAINT}, medianprops={"color": _COLOR, "linewidth": 1.6},
        meanprops={"marker": "o", "markerfacecolor": _COLOR, "markeredgecolor": "none", "markersize": 5},
        flierprops={"markersize": 2, "alpha": 0.3},
    )  # fmt: skip
    axes.invert_yaxis()
    axes.set_xlabel(label)
    axes.grid(axis="y", visible=False)
    return _png(figure)


@_never_fails
def heatmap(
    names: Sequence[str], columns: Sequence[str], values: Sequence[Sequence[float]], x_label: str = "", y_label: str = ""
) -> bytes:
    """A matrix of counts as shades, with the number in each cell; zero cells stay empty."""
    by_row = sorted(range(len(names)), key=lambda row: -sum(values[row]))
    by_column = sorted(range(len(columns)), key=lambda column: -sum(row[column] for row in values))
    columns, values = _bounded(columns, values, by_column)
    names, values = _bounded(names, list(zip(*values, strict=True)), by_row)
    values = list(zip(*values, strict=True))
    figure, axes = _figure(1.8 + 0.45 * len(columns), 1.5 + 0.36 * len(names))
    most = max(max(row) for row in values) or 1
    shades = LinearSegmentedColormap.from_list("shades", ["#ffffff", _COLOR])
    axes.imshow(values, cmap=shades, vmin=0, vmax=most, aspect="auto")
    axes.grid(visible=False)
    axes.set_xticks(range(len(columns)), columns, rotation=90, fontsize=8)
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.tick_params(length=0)
    for y, row in enumerate(values):
        for x, value in enumerate(row):
            if value >= 0.05:
                text = f"{value:.0f}" if abs(value - round(value)) < 0.05 else f"{value:.1f}"
                axes.text(x, y, text, ha="center", va="center", fontsize=7, color="white" if value > 0.6 * most else "#333")
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    return _png(figure)


def _bounded(
    names: Sequence[object], rows: Sequence[Sequence[float]], order: Sequence[int]
) -> tuple[list[str], list[list[float]]]:
    """At most `MOST` names, the first by `order`, in their original order; plus one that sums the others in each row."""
    kept, others = sorted(order[:MOST]), order[MOST:]
    shown = [_name(names[place]) for place in kept] + ([f"other ({len(others):,})"] if others else [])
    sums = [[row[place] for place in kept] + ([sum(row[place] for place in others)] if others else []) for row in rows]
    return shown, sums


def _name(name: object) -> str:
    return one_line(name, _MOST_CHARACTERS)


def _legend(axes: Axes, series: int) -> None:
    if series > 1:
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=min(series, 4), fontsize=8, frameon=False)


def _colors():
    return cycle((*_PALETTE, "#6b5b95", "#7a7a7a", "#00798c", "#a0522d"))


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(min(width, _MOST_INCHES), min(height, _MOST_INCHES)), dpi=_DPI, layout="constrained")
    axes = figure.subplots()
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.set_axisbelow(True)
    axes.grid(color=_FAINT, linewidth=0.7)
    axes.tick_params(labelsize=8)
    axes.xaxis.label.set_size(9)
    axes.yaxis.label.set_size(9)
    return figure, axes


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()
