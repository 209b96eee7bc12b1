"""The table of systems as markdown and CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

from .grid import average, difference, grid, mean
from .systems import BASELINES, label, mark

Table = Mapping[str, Any]


def systems_markdown(table: Table) -> str:
    """Everything for people: BLEU by direction as the paper's Table 4, means by system, what it was made with; the same for
    other corpora's test sets."""
    parts = [_directions(table), _means(table), _notes(table)]
    for name, other in table["second"].items():
        parts += [f"Test sets of {name}:", _directions(other), _means(other), _notes(other)]
    return "\n\n".join([*parts, *table["left_out"]]) + "\n"


def systems_csv(table: Table) -> str:
    """One line per test corpus, direction (and mean over directions), system and metric; differences to LEC and to the
    multilingual model where they were tested."""
    text = io.StringIO()
    out = csv.writer(text, lineterminator="\n")
    columns = [f"{key}_{base}" for base in BASELINES for key in ("difference", "low", "high", "p")]
    out.writerow(["split", "direction", "class", "sentences", "system", "metric", "value", "seeds", *columns])
    for one in (table, *table["second"].values()):
        for row in one["directions"]:
            for metric in ("bleu", "chrf", "nll"):
                for system, value in row[metric].items():
                    deltas = row["deltas"] if (system, metric) == (one["subject"], "bleu") else {}
                    seeds = len(row["bleu_by_seed"][system])
                    known = (one["split"], row["direction"], row["class"], row["sentences"], system, metric, value, seeds)
                    out.writerow([*("" if cell is None else cell for cell in known), *_tested(deltas)])
        for row in one["systems"]:
            for group, metrics in row["groups"].items():
                for metric, cell in metrics.items():
                    deltas = (
                        one["average"]["deltas"] if (row["system"], group, metric) == (one["subject"], "all", "bleu") else {}
                    )
                    known = (one["split"], f"mean of {group}", "", "", row["system"], metric, cell["mean"], cell["count"])
                    out.writerow([*known, *_tested(deltas)])
    return text.getvalue()


def gain(delta: Mapping[str, Any] | None) -> str:
    """``+1.2`` with the mark of its significance."""
    return "-" if delta is None else f"{delta['difference']:+.1f}{mark(delta)}"


def remarks(table: Table) -> list[str]:
    """What the numbers are and how they were tested, a line each."""
    lines = []
    if table["baselines"]:
        over = " and over ".join(label(base) for base in table["baselines"])
        lines.append(
            f"Differences are of FTAC over {over}; \N{DAGGER} p < 0.01, \N{DOUBLE DAGGER} p < 0.05, for better or worse, by "
            f"paired bootstrap of the test sentences ({table['resamples']:,} resamples, two-sided), given these trainings. "
            "No p is corrected for the number of tests."
        )
    if any(len(row["seeds"]) > 1 for row in table["systems"]):
        lines.append(
            "Scores are means over seeds, differences means over the seeds that both systems have; +- is the half width of the "
            "95 % t-interval over seeds, p over seeds that of the paired t test."
        )
    lines += [f"{row['label']}: {row['about']}; seeds {', '.join(map(str, row['seeds']))}." for row in table["systems"]]
    decoding, limit = table["decoding"], table["limit"]
    first = f", the first {limit} lines of each direction" if limit else ""
    lines.append(
        f"{table['split']} split{first}, beam {decoding['beam']}, length penalty {decoding['length_penalty']:g}; "
        f"{'; '.join(table['signatures'])}."
    )
    if len(table["signatures"]) > 1:
        lines.append("The directions have different BLEU signatures: their mean is no number to compare with other work.")
    if table["unfinished"]:
        lines.append(f"Not finished, and left out: {', '.join(table['unfinished'])}.")
    return lines


def _directions(table: Table) -> str:
    systems = [row["system"] for row in table["systems"]]
    head = ["BLEU", "sentences", *(label(system) for system in systems)]
    head += [f"FTAC - {label(base)}" for base in table["baselines"]]
    rows = [head]
    for row in table["directions"]:
        scores = [f"{row['bleu'][system]:.1f}" for system in systems]
        sentences = "-" if row["sentences"] is None else f"{row['sentences']:,}"
        rows.append([row["direction"], sentences, *scores, *(gain(row["deltas"][base]) for base in table["baselines"])])
    means = [f"{row['groups']['all']['bleu']['mean']:.1f}" for row in table["systems"]]
    gains = [gain(table["average"]["deltas"][base]) for base in table["baselines"]]
    return grid([*rows, [f"Average ({table['average']['directions']})", "", *means, *gains]])


def _means(table: Table) -> str:
    compared = any(row["system"] == BASELINES[1] for row in table["systems"])
    more = [group for group in table["groups"] if group != "all"] if len(table["groups"]) > 2 else []
    head = ["system", "models", "helpers", "BLEU", *(f"BLEU {group}" for group in more), "chrF++", "nll"]
    head += [f"BLEU - {label(BASELINES[1])}, over sentences", "over seeds"] if compared else []
    rows = [[*head, "seeds", "M tokens", "minutes"]]
    for row in table["systems"]:
        cells = row["groups"]
        line = [row["label"], number(row["clusters"]), number(row["helpers"]), mean(cells["all"]["bleu"])]
        line += [mean(cells[group]["bleu"]) for group in more]
        line += [mean(cells["all"]["chrf"]), mean(cells["all"]["nll"], 3)]
        if compared:
            bleu = cells["all"]["bleu"]
            line += [difference(bleu.get("against_sentences"), "difference"), difference(bleu.get("against"), "mean")]
        cost = [average(row["target_tokens"], 1e6, 2), average(row["training_seconds"], 60, 1)]
        rows.append([*line, str(len(row["seeds"])), *cost])
    return grid(rows)


def _notes(table: Table) -> str:
    return "\n".join(f"- {line}" for line in remarks(table))


def _tested(deltas: Mapping[str, Any]) -> list[Any]:
    return [(deltas.get(base) or {}).get(key, "") for base in BASELINES for key in ("difference", "low", "high", "p")]


def number(values: Sequence[int | None]) -> str:
    """Of every seed, or of all where they agree."""
    return "-" if None in values else ", ".join(map(str, dict.fromkeys(values) if len(set(values)) == 1 else values))
