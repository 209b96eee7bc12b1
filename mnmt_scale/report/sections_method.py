"""The parts of the page about training methods and what is measured of gradients and curvature.

The figures follow those of Li and Gong (2021), "Robust Optimization for Multilingual Translation with Imbalanced Data";
captions name the one that they answer to.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from . import plots_curvature, plots_gradients, plots_method
from .html import Column, details, heading, notes, paragraph, table
from .probes import Probe
from .read import RunData
from .sections import Drawing

_FOLD_RUNS = 3
"""From this many runs on, what takes a large figure per run is folded away."""

_GROUPS = (
    "E encoder, D decoder; SA self-attention, EA attention to the encoder, FC feed-forward, LN layer normalisation; "
    "all: all parameters."
)


_MEANING = {
    "cats": ": lambda_c and alpha' G alpha (Eq. 3 and 4 of its paper), the squared norm of the weighted gradient",
    "multidds": "; the weights are shares of the sampling",
    "chi_ibr": "; the weights are shares of the sampling",
    "ftac": "; the weights are shares of the sampling (FTAC paper, Eq. 14 and 15), dotted what was drawn of the epoch so far",
}


def weights(runs: Sequence[RunData], draw: Drawing) -> str:
    """For each run what its method decided; nothing where no run has a method that decides."""
    parts = []
    for run in runs:
        beyond = plots_method.scalar_names(run)[plots_method.MOST_SCALARS :]
        drawing = draw(
            lambda run=run: plots_method.method_curves(run),
            f"Weights of the directions over steps, {run.name}",
            f"{run.method}: a line per direction in the colour of its resource class, the mean of each class bold (of the last "
            "weight that each direction had). Beside it the method's own numbers"
            + (f"{_MEANING[run.method]}." if run.method in _MEANING else ".")
            + (f" Not drawn, but in the JSON: {', '.join(beyond)}." if beyond else ""),
        )
        if drawing:
            parts += [heading(run.name)] if len(runs) > 1 else []
            parts.append(drawing)
    return "".join(parts)


def geometry(runs: Sequence[RunData], draw: Drawing) -> str:
    """Similarity of gradients and curvature: over the steps, then the newest probe of each run in full."""
    over_steps = [
        draw(
            lambda: plots_curvature.eigenvalue_curves(runs),
            "Top eigenvalue of the Hessian over steps",
            "Signed eigenvalue of largest magnitude of the Hessian of each direction's loss. Thin: one direction each, bold: "
            "the median of a class. (CATS paper, Fig. 2, top.)",
        ),
        draw(
            lambda: plots_curvature.cosine_curves(runs),
            "Cosine of gradients over steps",
            "Mean cosine between the gradients of two directions over all parameters, by the pair's resource classes. "
            "(CATS paper, Fig. 2, bottom.)",
        ),
    ]
    if len(runs) == 1 and any(over_steps):
        over_steps = ['<div class="pairs">', *over_steps, "</div>"]
    newest = []
    for run in runs:
        body = _gradients(run, runs, draw) + _curvature(run, draw)
        if body and len(runs) >= _FOLD_RUNS:
            newest.append(details(f"Newest probes of {run.name}", body))
        elif body:
            newest += [heading(run.name)] * (len(runs) > 1) + [body]
    if not any(over_steps) and not newest:
        return paragraph(
            "Not measured. mnmt probe gradients RUN and mnmt probe curvature RUN measure a checkpoint; the settings "
            "probe.gradients_every and probe.curvature_every do so during training."
        )
    return "".join([*over_steps, *newest])


def _gradients(run: RunData, runs: Sequence[RunData], draw: Drawing) -> str:
    probe = run.probes.get("gradients")
    if probe is None:
        return ""
    maps = draw(
        lambda: plots_gradients.group_maps(run, runs),
        f"Similarity of gradients by group of parameters, {run.name}",
        "Mean over pairs of directions \N{PLUS-MINUS SIGN} standard deviation over these pairs; rows: pair of resource classes "
        f"(number of pairs), columns: group of parameters. {_GROUPS} Norm similarity is 2|a||b| / (|a|^2 + |b|^2), 1 for equal "
        f"norms. {_measured(probe)} (CATS paper, Fig. 3.)",
    )
    dots = draw(
        lambda: plots_gradients.group_dots(run),
        f"Spread of the cosines by group of parameters, {run.name}",
        "Dot: mean over the pairs (their number in the key), thick: one standard deviation to each side, thin: smallest to "
        "largest. (CATS paper, Fig. 5a.)",
    )
    pairs = draw(
        lambda: plots_gradients.direction_map(run),
        f"Cosine of gradients of every pair of directions, {run.name}",
        "All parameters; directions by resource class, then largest corpus first; lines part the classes. Grey: the "
        "direction with itself, or a gradient of zero. The colours end at the 99th percentile of the sizes.",
    )
    if not maps and not dots and not pairs:
        return notes([f"{run.name}: the gradient probe of step {probe.step} has no pair of directions."])
    return maps + dots + pairs


def _curvature(run: RunData, draw: Drawing) -> str:
    probe = run.probes.get("curvature")
    if probe is None:
        return ""
    bars = draw(
        lambda: plots_curvature.curvature_bars(run),
        f"Curvature of each direction's loss, {run.name}",
        "From the smallest to the largest eigenvalue of the Hessian (Lanczos), the dot at the one of largest magnitude; an "
        "eigenvalue lies within its whisker. Below: the trace (Hutchinson), where it was measured, with its standard error. "
        f"{_measured(probe)} (What Fig. 2, top, of the CATS paper follows over the steps.)",
    )
    return (bars or notes([f"{run.name}: the curvature probe of step {probe.step} has no finite eigenvalue."])) + details(
        f"Curvature of the {len(probe.tasks)} directions as numbers", _curvature_table(run, probe)
    )


def _curvature_table(run: RunData, probe: Probe) -> str:
    columns = [Column("direction", text=True), Column("class", text=True)]
    columns += [Column(name.replace("_", " "), 4) for name in probe.arrays]
    rows: list[list[Any]] = []
    for i in plots_curvature.ordered(run, probe):
        numbers = [float(array[i]) for array in probe.arrays.values()]
        rows.append([probe.tasks[i], plots_curvature.class_in(run, probe, probe.tasks[i]), *numbers])
    return table(columns, rows)


def _measured(probe: Probe) -> str:
    """When and on what the probe was taken, as far as it says."""
    facts = [f"Measured after {probe.step:,} steps"]
    if _count(probe.facts.get("tokens")) and probe.facts["tokens"] > 0:
        facts.append(f"({probe.facts['tokens']:,} target tokens)")
    if _count(probe.facts.get("sentences")):
        facts.append(f"on {probe.facts['sentences']:,} sentences a direction")
    if isinstance(probe.facts.get("split"), str):
        facts.append(f"of {probe.facts['split']}")
    if isinstance(probe.facts.get("directions"), str):
        facts.append(f"({probe.facts['directions']})")
    return " ".join(facts) + "."


def _count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
