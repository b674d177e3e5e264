"""Plots as PNG, in one style."""

import io
from collections.abc import Collection, Sequence
from itertools import cycle

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot
from matplotlib.figure import Figure

_COLOR, _FAINT = "#3b6ea5", "#d9dee5"
_PALETTE = ("#3b6ea5", "#e0a33e", "#4f9d69", "#b5566b")
_DPI = 220  # twice what a page shows them at, for screens with small pixels


def histogram(edges: Sequence[float], counts: Sequence[int], label: str) -> bytes:
    """Counts over bins of even width, each beginning at its edge."""
    figure, axes = _figure(7.2, 3.0)
    width = edges[1] - edges[0] if len(edges) > 1 else 1.0
    axes.bar(edges, counts, width=width, align="edge", color=_COLOR, edgecolor="white", linewidth=0.5)
    axes.set_xlabel(label)
    axes.set_ylabel("clips")
    axes.set_xlim(left=0)
    return _png(figure)


def columns(names: Sequence[str], values: Sequence[float], label: str, y_label: str) -> bytes:
    """A few columns with their values above them."""
    figure, axes = _figure(7.2, 3.0)
    drawn = axes.bar([str(name) for name in names], values, color=_COLOR, width=0.7)
    axes.bar_label(drawn, [f"{value:,g}" for value in values], padding=2, fontsize=8)
    axes.set_xlabel(label)
    axes.set_ylabel(y_label)
    axes.margins(y=0.15)
    return _png(figure)


def stacked_rows(names: Sequence[str], series: dict[str, Sequence[float]], label: str, decimals: int = 0) -> bytes:
    """One horizontal bar for each name, made of the parts of each series; its total stands at its end."""
    figure, axes = _figure(7.2, 0.7 + 0.27 * len(names))
    totals = [0.0] * len(names)
    for (part, values), color in zip(series.items(), _PALETTE, strict=False):
        axes.barh(names, values, left=totals, color=color, height=0.7, label=part)
        totals = [total + value for total, value in zip(totals, values, strict=True)]
    most = max([*totals, 1e-9])
    for place, total in enumerate(totals):
        axes.text(total + 0.01 * most, place, f"{total:,.{decimals}f}", va="center", fontsize=8)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.1 * most)
    axes.set_xlabel(label)
    axes.grid(axis="y", visible=False)
    _legend(axes, len(series))
    return _png(figure)


def intervals(
    names: Sequence[str],
    series: dict[str, Sequence[tuple[float, float, float] | None]],
    label: str,
    grey: Collection[str] = (),
) -> bytes:
    """For each name and each series a point with its interval (value, low, high); None: nothing to show. The first name
    stands apart from the others; series in `grey` are there to compare with. Small enough to be read on a phone."""
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
            axes.errorbar(value, at, xerr=reach, fmt="o", markersize=3.5, color=color, elinewidth=1.2, label=part)
    axes.set_yticks(places, names)
    axes.tick_params(labelsize=9.5, length=0)
    axes.get_yticklabels()[0].set_weight("bold")
    axes.grid(axis="y", visible=False)
    axes.set_ylim(places[-1] + 0.5, -0.5)
    axes.set_xlim(-0.02, 1.02)
    axes.set_xlabel(label)
    _legend(axes, len(series))
    return _png(figure)


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
    """One line for each series of (x, y). `diagonal`: with the line x = y, where the two should agree."""
    figure, axes = _figure(7.2, 3.6)
    if diagonal:
        axes.plot([0, 1], [0, 1], color="#888888", linewidth=1, linestyle="--")
    for (part, values), color in zip(series.items(), _colors(), strict=False):
        x, y = zip(*values, strict=True) if values else ((), ())
        axes.plot(x, y, color=color, linewidth=1.4, marker="o" if points else None, markersize=4, label=part)
    if unit_square:
        axes.set_xlim(-0.02, 1.02)
        axes.set_ylim(-0.02, 1.02)
    axes.set_yscale(y_scale)
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    _legend(axes, len(series))
    return _png(figure)


def bands(series: dict[str, Sequence[tuple[float, float, float, float]]], x_label: str, y_label: str) -> bytes:
    """One line with its band for each series of (x, value, low, high); values are shares."""
    figure, axes = _figure(7.2, 3.6)
    for (part, values), color in zip(series.items(), _colors(), strict=False):
        x, value, low, high = zip(*values, strict=True)
        axes.plot(x, value, color=color, marker="o", markersize=4, linewidth=1.4, label=part)
        axes.fill_between(x, low, high, color=color, alpha=0.15, linewidth=0)
    axes.set_ylim(-0.02, 1.02)
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    _legend(axes, len(series))
    return _png(figure)


def distributions(series: dict[str, Sequence[float]], label: str) -> bytes:
    """One box for each series: median, quartiles, and all but the outliers; the mean as a point."""
    figure, axes = _figure(7.2, 0.9 + 0.4 * len(series))
    axes.boxplot(
        list(series.values()), orientation="horizontal", tick_labels=list(series), showmeans=True, widths=0.6, patch_artist=True,
        boxprops={"facecolor": _FAINT}, medianprops={"color": _COLOR, "linewidth": 1.6},
        meanprops={"marker": "o", "markerfacecolor": _COLOR, "markeredgecolor": "none", "markersize": 5},
        flierprops={"markersize": 2, "alpha": 0.3},
    )  # fmt: skip
    axes.invert_yaxis()
    axes.set_xlabel(label)
    axes.grid(axis="y", visible=False)
    return _png(figure)


def heatmap(
    names: Sequence[str], columns: Sequence[str], values: Sequence[Sequence[float]], x_label: str = "", y_label: str = ""
) -> bytes:
    """Counts of rows against columns as shades with the number in each cell; zero cells stay empty."""
    figure, axes = _figure(1.8 + 0.45 * len(columns), 1.5 + 0.36 * len(names))
    most = max(max(row) for row in values) or 1
    shades = matplotlib.colors.LinearSegmentedColormap.from_list("shades", ["#ffffff", _COLOR])
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


def _legend(axes: pyplot.Axes, series: int) -> None:
    if series > 1:
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=min(series, 4), fontsize=8, frameon=False)


def _colors():
    return cycle((*_PALETTE, "#6b5b95", "#7a7a7a", "#00798c", "#a0522d"))


def _figure(width: float, height: float) -> tuple[Figure, pyplot.Axes]:
    figure, axes = pyplot.subplots(figsize=(width, height), dpi=_DPI, layout="constrained")
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
    pyplot.close(figure)
    return buffer.getvalue()
