"""Plots as PNG, in one style."""

import io
from collections.abc import Sequence

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot
from matplotlib.figure import Figure

_COLOR, _FAINT = "#3b6ea5", "#d9dee5"
_PALETTE = ("#3b6ea5", "#e0a33e", "#4f9d69", "#b5566b")
_DPI = 110


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
    if len(series) > 1:
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=len(series), fontsize=8, frameon=False)
    return _png(figure)


def matrix(names: Sequence[str], values: Sequence[Sequence[int]], label: str) -> bytes:
    """Counts of pairs as shades with the number in each cell; zero cells stay empty."""
    side = 1.6 + 0.42 * len(names)
    figure, axes = _figure(side, side)
    most = max(max(row) for row in values) or 1
    shades = matplotlib.colors.LinearSegmentedColormap.from_list("shades", ["#ffffff", _COLOR])
    axes.imshow(values, cmap=shades, vmin=0, vmax=most)
    axes.grid(visible=False)
    axes.set_xticks(range(len(names)), names, rotation=90, fontsize=8)
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.tick_params(length=0)
    for y, row in enumerate(values):
        for x, value in enumerate(row):
            if value:
                axes.text(x, y, f"{value}", ha="center", va="center", fontsize=7, color="white" if value > 0.6 * most else "#333")
    axes.set_title(label, fontsize=9)
    return _png(figure)


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
