"""The report's pictures, each a function from numbers to an SVG string fit for pasting into HTML."""

from __future__ import annotations

import hashlib
import html
import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from pipeline.evaluation.scoring.angles import BINS, ClassAngles
from pipeline.evaluation.scoring.verification import FloatArray, Roc, ScoredPairs

INK, MUTED, GRID = "#1f2933", "#616e7c", "#e4e7eb"
SAME, DIFFERENT = "#1864ab", "#d9622b"
# Models in the order in which they are listed: the starting point recedes, the rest stay apart in grey print too.
MODELS = ("#9aa5b1", "#1864ab", "#d9622b", "#2b8a3e", "#862e9c", "#c92a2a")
STYLE = {
    "svg.fonttype": "none",  # text stays text: it can be selected, searched and read aloud
    "svg.hashsalt": "spherescale",  # the same numbers give the same bytes
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#9aa5b1",
    "axes.labelcolor": MUTED,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
}


def line_plot(lines: Mapping[str, tuple[FloatArray, FloatArray]], title: str, log: bool = False) -> str:
    """A quantity of training against the step, for each run; a noisy one as its running median over its points."""
    figure, axes = _figure(4.6, 2.5)
    for (name, (steps, values)), color in zip(lines.items(), _colors(len(lines)), strict=True):
        smooth = running_median(values)
        if smooth is not None:
            axes.plot(steps, values, color=color, linewidth=0.8, alpha=0.3)
        axes.plot(steps, values if smooth is None else smooth, color=color, label=_plain(name))
    axes.set(xlabel="step")
    positive = all(values.min() > 0 for _, values in lines.values())
    axes.set_yscale("log" if log and positive else "linear")
    if len(lines) > 1:
        axes.legend(loc="best", fontsize=8)
    return _svg(figure, axes, title)


def time_split_plot(seconds: Mapping[str, float]) -> str:
    """Where a step's time goes: one bar a part, in milliseconds and per cent of the whole."""
    figure, axes = _figure(4.6, 2.5)
    total = sum(seconds.values()) or 1.0
    names = [name.replace("_", " ") for name in seconds]
    bars = axes.barh(names, [1000 * value for value in seconds.values()], color=SAME, height=0.6)
    labels = [f"{1000 * value:.3g} ms, {value / total:.0%}" for value in seconds.values()]
    axes.bar_label(bars, labels, padding=4, color=MUTED, fontsize=8)
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    axes.margins(x=0.32)
    axes.set(xlabel="milliseconds")
    return _svg(figure, axes, "time of a step by part")


def roc_plot(curves: Mapping[str, Roc], grid: FloatArray, bands: Mapping[str, FloatArray]) -> str:
    """True accept rate against false accept rate, the latter logarithmic down to one accepted impostor.

    `bands` are the intervals `[F, 2]` of the TAR at the FARs `grid`, shaded.
    """
    figure, axes = _figure(4.6, 3.4)
    for (name, curve), color in zip(curves.items(), _colors(len(curves)), strict=True):
        # A step curve: between two attainable points no threshold lies.
        axes.step(np.maximum(curve.far, grid[0] / 2), curve.tar, where="post", color=color, label=_plain(name))
        axes.fill_between(grid, *bands[name].T, step="post", color=color, alpha=0.15, linewidth=0)
    axes.plot(grid, grid, color=MUTED, linewidth=0.8, linestyle=":", label="chance")
    axes.set(xscale="log", xlim=(grid[0], 1), ylim=(0, 1.01))
    axes.set(xlabel="false accept rate", ylabel="true accept rate")
    axes.legend(loc="best", fontsize=8)
    return _svg(figure, axes, "ROC, 95% intervals shaded")


def template_roc_plot(curves: Mapping[str, FloatArray]) -> str:
    """The 1:1 ROC of templates: for each model `[2, n]`, FAR and TAR."""
    figure, axes = _figure(4.6, 3.4)
    for (name, (far, tar)), color in zip(curves.items(), _colors(len(curves)), strict=True):
        axes.step(far, tar, where="post", color=color, label=_plain(name))
    axes.set(xscale="log", ylim=(0, 1.01), xlabel="false accept rate", ylabel="true accept rate")
    axes.legend(loc="best", fontsize=8)
    return _svg(figure, axes, "ROC of templates")


def det_plot(curves: Mapping[str, Roc], grid: FloatArray, bands: Mapping[str, FloatArray]) -> str:
    """Detection error trade-off: false reject rate against false accept rate, both logarithmic; `bands` as in a ROC."""
    figure, axes = _figure(4.6, 3.4)
    floor = min(1 / curve.genuine for curve in curves.values())
    for (name, curve), color in zip(curves.items(), _colors(len(curves)), strict=True):
        rejected = np.maximum(1 - curve.tar, floor / 2)
        axes.step(np.maximum(curve.far, grid[0] / 2), rejected, where="post", color=color, label=_plain(name))
        low, high = 1 - bands[name].T
        axes.fill_between(
            grid,
            np.maximum(low, floor / 2),
            np.maximum(high, floor / 2),
            step="post",
            color=color,
            alpha=0.15,
            linewidth=0,
        )
    axes.plot(grid, grid, color=MUTED, linewidth=0.8, linestyle=":", label="equal error")
    axes.set(xscale="log", yscale="log", xlim=(grid[0], 1), ylim=(floor, 1))
    axes.set(xlabel="false accept rate", ylabel="false reject rate")
    axes.legend(loc="best", fontsize=8)
    return _svg(figure, axes, "DET, 95% intervals shaded")


def reject_plot(rejected: Sequence[float], curves: Mapping[str, Sequence[float]]) -> str:
    """False reject rate of the pairs that remain, against the share of pairs of low ‖x‖ that are left out."""
    figure, axes = _figure(4.6, 3.4)
    for (name, errors), color in zip(curves.items(), _colors(len(curves)), strict=True):
        axes.plot(rejected, errors, "o-", markersize=3, color=color, label=_plain(name))
    axes.set(xlabel="share of same pairs left out, lowest ‖x‖ first", ylabel="false reject rate")
    axes.set_ylim(bottom=0)
    axes.legend(loc="best", fontsize=8)
    return _svg(figure, axes, "error against reject rate")


def cmc_plot(curves: Mapping[str, FloatArray]) -> str:
    """Share of searches with a mate of at most a rank: for each model `[R, 3]`, value, low and high of the interval."""
    figure, axes = _figure(4.6, 3.4)
    for (name, curve), color in zip(curves.items(), _colors(len(curves)), strict=True):
        ranks = np.arange(1, len(curve) + 1)
        axes.plot(ranks, curve[:, 0], "o-", markersize=3, color=color, label=_plain(name))
        axes.fill_between(ranks, curve[:, 1], curve[:, 2], color=color, alpha=0.15, linewidth=0)
    axes.set(xlabel="rank", ylabel="identification rate", ylim=(0, 1.01))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(loc="best", fontsize=8)
    return _svg(figure, axes, "CMC, 95% intervals shaded")


def progress_plot(lines: Mapping[str, tuple[FloatArray, FloatArray]]) -> str:
    """Accuracy against the step for each run: steps `[n]`, and `[n, 3]` of value, low and high of its interval."""
    figure, axes = _figure(4.6, 3.4)
    for (name, (steps, accuracy)), color in zip(lines.items(), _colors(len(lines)), strict=True):
        axes.fill_between(steps, accuracy[:, 1], accuracy[:, 2], color=color, alpha=0.15, linewidth=0)
        axes.plot(steps, accuracy[:, 0], "o-", markersize=3, color=color, label=_plain(name))
    axes.set(xlabel="step")
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    if len(lines) > 1:
        axes.legend(loc="best", fontsize=8)
    return _svg(figure, axes, "accuracy while training, 95% intervals shaded")


def histogram_plot(pairs: ScoredPairs, threshold: float, title: str, limits: tuple[float, float]) -> str:
    """Cosine similarities of same and different pairs, each as a density, and the mean threshold."""
    figure, axes = _figure(4.6, 2.3)
    bins = np.linspace(*limits, 60)
    for chosen, color, label in ((~pairs.same, DIFFERENT, "different"), (pairs.same, SAME, "same")):
        axes.hist(pairs.scores[chosen], bins=bins, density=True, color=color, alpha=0.55, label=label)
    axes.axvline(threshold, color=INK, linewidth=1, linestyle="--", label="threshold")
    axes.set(xlabel="cosine similarity", xlim=limits)
    axes.set_yticks([])
    axes.legend(loc="best", fontsize=8)
    return _svg(figure, axes, title)


def angle_plot(angles: ClassAngles) -> str:
    """Angles of images to their own person's mean and between people's means, each as a share by degree."""
    figure, axes = _figure(4.6, 3.4)
    degrees = np.arange(BINS) + 0.5
    shown = np.flatnonzero(angles.within_counts + angles.between_counts)
    for counts, color, label in (
        (angles.between_counts, DIFFERENT, f"between two people: mean cosine {angles.mean_cosine:.2f}"),
        (angles.within_counts, SAME, "image to its own person"),
    ):
        axes.fill_between(degrees, counts / max(1, counts.sum()), step="mid", color=color, alpha=0.55, label=label)
    axes.set(xlabel="degrees", xlim=(max(0, shown[0] - 2), min(BINS, shown[-1] + 3)))
    axes.set_ylim(bottom=0)
    axes.set_yticks([])
    axes.legend(loc="best", fontsize=8)
    return _svg(figure, axes, "angles within and between people")


def people_plot(angles: ClassAngles) -> str:
    """Each person's median angle of images with its 5% to 95% range, and the nearest other person; by that median."""
    figure, axes = _figure(4.6, 3.4)
    known = np.flatnonzero(np.isfinite(angles.within[:, 1]))
    order = known[np.argsort(angles.within[known, 1], kind="stable")]
    low, median, high = angles.within[order].T
    places = np.arange(1, len(order) + 1)
    axes.vlines(places, low, high, color=SAME, alpha=0.35, linewidth=max(0.6, min(6, 160 / max(1, len(order)))))
    axes.plot(places, median, "o", markersize=2.5, color=SAME, label="own images: median, 5% to 95%")
    axes.plot(places, angles.nearest[order], "o", markersize=2.5, color=DIFFERENT, label="nearest other person")
    axes.set(xlabel="people, by their median", ylabel="degrees")
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(loc="best", fontsize=8)
    return _svg(figure, axes, "angles by person")


def fold_plot(accuracies: Mapping[str, Sequence[float]]) -> str:
    """Accuracy on each fold: a dot for each fold and model, a line at each model's mean."""
    figure, axes = _figure(4.6, 3.4)
    for i, ((name, values), color) in enumerate(zip(accuracies.items(), _colors(len(accuracies)), strict=True)):
        # Beside each other, so that equal accuracies do not hide one another.
        places = np.arange(1, len(values) + 1) + 0.12 * (i - (len(accuracies) - 1) / 2)
        axes.plot(places, values, "o", color=color, markersize=5, label=_plain(name))
        axes.axhline(float(np.nanmean(values)), color=color, linewidth=0.9, linestyle="--")
    axes.grid(visible=False, axis="x")
    axes.set_xticks(range(1, max(map(len, accuracies.values())) + 1))
    axes.set(xlabel="fold", xlim=(0.5, max(map(len, accuracies.values())) + 0.5))
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.legend(loc="best", fontsize=8)
    return _svg(figure, axes, "accuracy by fold")


def study_plot(here: Mapping[str, Sequence[float] | None], published: Mapping[str, float | None]) -> str:
    """Accuracy of each arm: ours left, published (if any) right, on an axis of its own.

    Ours is mean, low, high and then each seed's accuracy, drawn as a bar from low to high with the seeds beside it.
    """
    panels = 2 if any(value is not None for value in published.values()) else 1
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(4.6 * panels, 3.0), layout="constrained")
        drawn = figure.subplots(1, panels, squeeze=False)[0]
    for place, values in enumerate(here.values()):
        if values is not None:
            mean, low, high, *seeds = values
            drawn[0].plot([place, place], [low, high], color=SAME)
            drawn[0].plot(place, mean, "o", color=SAME, clip_on=False)
            drawn[0].plot([place + 0.18] * len(seeds), seeds, "o", color=DIFFERENT, markersize=3, clip_on=False)
    for axes, names in zip(drawn, (here, published), strict=False):
        axes.set_xticks(range(len(names)), list(map(_plain, names)))
        axes.set_xlim(-0.5, len(names) - 0.5)
        axes.grid(visible=False, axis="x")
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=1))
    if panels == 2:
        points = [(place, value) for place, value in enumerate(published.values()) if value is not None]
        drawn[1].plot(*zip(*points, strict=True), "D", color=MUTED, clip_on=False)
        drawn[1].set_title("published", loc="left", fontsize=10, color=INK)
    for axes in drawn:  # there is no accuracy above 100%
        axes.set_ylim(top=min(axes.get_ylim()[1], 1.0))
    return _svg(figure, drawn[0], "here: mean, 95% interval, each seed")


def running_median(values: FloatArray, width: int = 15) -> FloatArray | None:
    """Median over a window of `width` around each point, or None if there are too few points to smooth."""
    if len(values) < 4 * width:
        return None
    half = width // 2
    padded = np.pad(values, half, mode="edge")
    windows = np.lib.stride_tricks.sliding_window_view(padded, width)
    return np.asarray(np.median(windows, axis=1))


def _plain(name: str) -> str:
    """A name for Matplotlib, which takes what stands between two $ for a formula and hides labels that begin with _."""
    return ("\u200b" if name.startswith("_") else "") + name.replace("$", r"\$")  # a space of no width


def _colors(count: int) -> list[str]:
    return [MODELS[i % len(MODELS)] for i in range(count)] if count > 1 else [SAME]


def _figure(width: float, height: float) -> tuple[Any, Any]:
    # rcParams act when artists are made and again when they are drawn, so `_svg` sets them too.
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        return figure, figure.add_subplot()


def _svg(figure: Any, axes: Any, title: str) -> str:
    """The figure as an `<svg>` element whose ids meet no other plot's on the same page."""
    axes.set_title(_plain(title), loc="left", fontsize=10, color=INK)
    stream = io.StringIO()
    with mpl.rc_context(STYLE):
        figure.savefig(stream, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    text = stream.getvalue()
    text = text[text.index("<svg") :]
    prefix = "p" + hashlib.sha256(text.encode()).hexdigest()[:8] + "-"
    text = re.sub(r'(\bid="|url\(#|xlink:href="#)', rf"\g<1>{prefix}", text)
    return text.replace("<svg ", f'<svg role="img" aria-label="{html.escape(title)}" ', 1)
