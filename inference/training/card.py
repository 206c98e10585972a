"""Writes the model card: every table from measured figures, no number by hand.

What cannot be measured, the known defects, is text by whoever releases the model.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inference.record import (
    CHOICE_KEYS,
    MARGIN_KEYS,
    RECORD_FILE,
    ModelRecord,
    read_record,
)
from inference.training.manifest import DataFault
from inference.training.runs import CONFIG

METRICS = "metrics.json"
TEST_FIGURES = "figures-test.json"
STRANGERS = "strangers.json"
DEFECTS = "defects.md"
CARD = "card.md"

Figures = Mapping[str, Any]

_MEASURES = (
    ("AUC, own region", "auc"),
    ("same, after DeLong", "auc_delong"),
    ("AUC, true box given", "auc_oracle_roi"),
    ("AUC, whole image alone", "auc_whole_only"),
    ("sensitivity", "sensitivity"),
    ("specificity", "specificity"),
    ("sensitivity at 90 % specificity", "sensitivity_at_90_specificity"),
    ("Youden index (own threshold)", "youden_index"),
    ("sensitivity of 4A or higher", "sensitivity_4a"),
    ("specificity of 4A or higher", "specificity_4a"),
    ("calibration error, 10 bins", "ece"),
    ("same, heads uncalibrated", "ece_uncalibrated"),
    ("Dice of the mask", "dice"),
)


@dataclass(frozen=True, slots=True)
class Target:
    """A figure that was promised before anybody looked. `bound`: value, low or high."""

    words: str
    part: str
    measure: str
    bound: str
    least: float
    at_most: bool = False

    def met(self, figures: Figures) -> tuple[float, bool] | None:
        """Return the figure and whether it meets the target; None unless measured."""
        found = figures.get(self.part, {}).get(self.measure) or {}
        value = found.get(self.bound)
        if value is None or math.isnan(value):
            return None
        return value, value <= self.least if self.at_most else value >= self.least


TARGETS = (
    Target("pooled AUC >= .90", "pooled", "auc", "value", 0.90),
    Target("pooled AUC, lower bound >= .86", "pooled", "auc", "low", 0.86),
    Target("BUS-BRA AUC >= .88", "busbra", "auc", "value", 0.88),
    Target("BrEaST AUC >= .85", "breast", "auc", "value", 0.85),
    Target(
        "sensitivity >= .90 at the frozen threshold",
        "pooled",
        "sensitivity",
        "value",
        0.90,
    ),
    Target("calibration error <= .05", "pooled", "ece", "value", 0.05, at_most=True),
    Target("Dice >= .75", "pooled", "dice", "value", 0.75),
)


def model_card(directory: Path) -> str:
    """Return the card of the model in `directory`, from the files beside it."""
    record = read_record(directory / RECORD_FILE)
    validation = _read(directory / METRICS)
    test = _read(directory / TEST_FIGURES)
    if validation is None:
        raise DataFault(f"{METRICS} is missing beside the weights: release them first")
    if test is not None and test.get("sha256") != record.sha256:
        raise DataFault(
            f"{TEST_FIGURES} is of other weights: evaluate this model again"
        )
    lines = _head(record) + _data(_read(directory / CONFIG), record)
    if test is not None:
        lines += result_lines(test, "the test split")
    lines += result_lines(
        validation, "the validation split, on which choices were made"
    )
    lines += _calibration(validation)
    lines += _shortcuts(validation.get("shortcuts") or {})
    lines += _strangers(_read(directory / STRANGERS) or {})
    shown = test or validation
    lines += _targets(shown, "test" if test is not None else "validation")
    lines += _defects(directory / DEFECTS)
    return "\n".join(lines).rstrip() + "\n"


def result_lines(figures: Figures, where: str) -> list[str]:
    """Return the tables of one evaluated split."""
    lines = [
        f"## Results on {where}",
        "",
        "95 % intervals: bootstrap over patients or lesion groups, or DeLong in the "
        "form for several images of one patient. Malignant against benign; the model "
        f"finds its own region. Threshold {_plain(figures.get('threshold'))}.",
        "",
    ]
    lines += _overall(figures)
    lines += _oracle(figures)
    lines += _by_case(figures)
    lines += _normals(figures.get("normal") or {})
    lines += _categories(figures.get("birads") or {})
    lines += _fields(figures.get("fields") or {})
    lines += _heat(figures.get("heat_map") or {})
    lines += _subgroups(figures.get("subgroups") or [])
    return lines


def _head(record: ModelRecord) -> list[str]:
    spoken = [
        f"{name} ({', '.join(keys)})" for name, keys in sorted(record.speaks_on.items())
    ]
    return [
        f"# Model card: {record.name} {record.version}",
        "",
        "Drafts reports on plain B-mode breast ultrasound for a physician. **Research "
        "and demonstration. Not a medical device, not clinically validated, never the "
        "last word: it drafts, a physician signs.**",
        "",
        *_table(
            ("", ""),
            [
                ("Weights", f"`{record.weights}`, SHA-256 `{record.sha256}`"),
                ("Input", f"square windows of {record.side} px, grey"),
                ("Suspicious from", f"probability {record.threshold:.3f}"),
                ("Speaks on", "; ".join(spoken) or "no descriptor"),
                ("Not assessed, left for the physician", _silent(record)),
            ],
        ),
    ]


def _silent(record: ModelRecord) -> str:
    """Return what the model never says: fields, and terms of fields it speaks on."""
    known = {**CHOICE_KEYS, "margin": MARGIN_KEYS}
    parts = []
    for name in sorted(known):
        said = record.speaks_on.get(name, ())
        left = [key for key in known[name] if key not in said]
        if not said:
            parts.append(name)
        elif left:
            parts.append(f"{name}: {', '.join(left)}")
    return "; ".join(parts) or "nothing"


def _data(config: Figures | None, record: ModelRecord) -> list[str]:
    training = record.training
    lines = ["## Data and training", ""]
    if config is not None:
        rows = []
        for split, part in config["data"].items():
            for name, count in part["sets"].items():
                classes = (count["benign"], count["malignant"], count["normal"])
                rows.append((name, split, "/".join(map(str, classes)), count["groups"]))
        header = ("set", "split", "benign/malignant/normal", "groups")
        lines += _table(header, rows)
    recipe = training.get("recipe") or (config or {}).get("recipe") or {}
    said = [f"{name} {value}" for name, value in recipe.items()]
    done = [
        f"{name.replace('_', ' ')} {value}"
        for name, value in training.items()
        if not isinstance(value, dict | list)
    ]
    lines += [f"Done: {', '.join(done)}."] if done else []
    lines += [f"Recipe: {', '.join(said)}."] if said else []
    return [*lines, ""]


def _overall(figures: Figures) -> list[str]:
    names = ["pooled", *figures.get("sets", [])]
    parts = [figures[name] for name in names if name in figures]
    rows = [["lesions (malignant)", *(f"{p['n']} ({p['malignant']})" for p in parts)]]
    for words, measure in _MEASURES:
        cells = [_cell(part.get(measure)) for part in parts]
        if any(cell != "-" for cell in cells):
            rows.append([words, *cells])
    return _table(("", *names), rows)


def _oracle(figures: Figures) -> list[str]:
    rows = []
    for name in ("pooled", *figures.get("sets", [])):
        gain = (figures.get(name) or {}).get("oracle_gain")
        if gain:
            rows.append(
                (
                    name,
                    gain["n"],
                    _plain(gain["second"]),
                    _plain(gain["first"]),
                    _span(gain["difference"], gain["low"], gain["high"], signed=True),
                    _plain(gain["p"]),
                )
            )
    if not rows:
        return []
    header = ("", "n", "own box", "true box", "gain (paired DeLong)", "p")
    return ["### What localisation costs", "", *_table(header, rows)]


def _by_case(figures: Figures) -> list[str]:
    return [
        f"{name} by case ({found['n']}): AUC {_cell(found['auc'])}.\n"
        for name, found in (figures.get("per_case") or {}).items()
    ]


def _normals(normal: Figures) -> list[str]:
    if not normal.get("normals"):
        return []
    return [
        f"Normal breasts: {normal['normals']}; recognised "
        f"{_plain(normal['normals_recognised'])}, lesions seen "
        f"{_plain(normal['lesions_seen'])}, AUC of the lesion head "
        f"{_plain(normal['auc'])}, cancers taken for normal "
        f"{normal['malignant_called_normal']}.",
        "",
    ]


def _categories(birads: Figures) -> list[str]:
    if not birads:
        return []
    lines = [
        "### BI-RADS category against the radiologists'",
        "",
        "The cut points between categories were fitted on `val` to how the sets'",
        "radiologists used them, with at least 98 % of its cancers at 4A or higher.",
        "They are not the ACR's bands of likelihood: the sets hold lesions that",
        "somebody biopsied. Another department may draw the lines elsewhere.",
        "",
    ]
    for name, found in birads.items():
        lines += [
            f"{name} (n = {found['n']}): weighted kappa "
            f"{_cell(found['weighted_kappa'])}. Rows given, columns drafted:",
            "",
        ]
        counts = zip(found["categories"], found["given_by_drafted"], strict=True)
        rows = [(category, *line) for category, line in counts]
        lines += _table(("", *found["categories"]), rows)
    return lines


def _fields(fields: Figures) -> list[str]:
    rows = []
    for name, found in fields.items():
        if not found:
            continue
        terms = ", ".join(
            f"{key} {_plain(term['auc'])} ({term['n']})"
            for key, term in found["keys"].items()
            if term["n"]
        )
        spoken = ", ".join(found.get("spoken") or ()) or "no"
        rows.append(
            (
                name,
                found["n"],
                terms,
                spoken,
                _cell(found.get("kappa") or found.get("head_kappa")),
                _cell(found.get("macro_f1") or found.get("head_macro_f1")),
            )
        )
    if not rows:
        return []
    header = (
        "field",
        "n",
        "AUC one against rest (cases)",
        "spoken",
        "kappa",
        "macro-F1",
    )
    return [
        "### Descriptors against the radiologists' labels",
        "",
        "Of fields that are not spoken: what the head would have said.",
        "",
        *_table(header, rows),
    ]


def _heat(heat: Figures) -> list[str]:
    rows = [
        (
            name,
            found["n"],
            _cell(found["hit"]),
            _cell(found["energy"]),
            _plain(found["by_chance"]),
        )
        for name, found in heat.items()
        if found.get("n")
    ]
    if not rows:
        return []
    header = ("", "n", "peak in the lesion", "energy in the lesion", "by chance")
    return ["### Where the heat map looks", "", *_table(header, rows)]


def _subgroups(parts: Iterable[Figures]) -> list[str]:
    rows = []
    for part in parts:
        few = part["auc"] is None
        cells = (
            ("fewer than 10 of a class", "-", "-")
            if few
            else tuple(_cell(part[m]) for m in ("auc", "sensitivity", "specificity"))
        )
        rows.append((part["kind"], part["name"], part["n"], part["malignant"], *cells))
    if not rows:
        return []
    header = ("", "", "n", "malignant", "AUC (DeLong)", "sensitivity", "specificity")
    return ["### Subgroups", "", *_table(header, rows)]


def _calibration(figures: Figures) -> list[str]:
    found = figures.get("calibration")
    if not found:
        return []
    rows = [(words, _plain(value)) for words, value in found.items()]
    return ["## Calibration", "", *_table(("", "error, 10 bins"), rows)]


def _shortcuts(shortcuts: Figures) -> list[str]:
    if not shortcuts:
        return []
    rows = []
    for name, found in shortcuts["changes"].items():
        area, up, down = found["auc"], found["newly_called"], found["no_longer_called"]
        rows.append(
            (
                name,
                f"{found['n']} ({found['malignant']})",
                _cell(found["logit_change"], signed=True),
                f"{_plain(area['second'])} -> {_plain(area['first'])}",
                _plain(area["p"]),
                f"{up['malignant']}+{up['benign']}",
                f"{down['malignant']}+{down['benign']}",
            )
        )
    header = (
        "change",
        "n (malignant)",
        "malignancy logit",
        "AUC",
        "p",
        "newly called (M+B)",
        "no longer called (M+B)",
    )
    lines = ["## Does it read callipers and text?", "", *_table(header, rows)]
    alone = [
        (
            name,
            column,
            found["n"],
            found["marked"],
            _cell(found["auc"]),
        )
        for name, columns in shortcuts["marks_alone"].items()
        for column, found in columns.items()
    ]
    if alone:
        lines += ["Marks alone as a predictor of malignancy:", ""]
        lines += _table(("set", "mark", "n", "marked", "AUC"), alone)
    return lines


def _strangers(figures: Figures) -> list[str]:
    rows = []
    for name, reasons in (figures.get("refusals") or {}).items():
        total, passed = sum(reasons.values()), reasons.get("read", 0)
        why = ", ".join(f"{key} {n}" for key, n in reasons.items() if key != "read")
        rows.append((name, total, total - passed, why or "-"))
    if not rows:
        return []
    header = ("pictures, all under a header that says breast", "n", "refused", "why")
    return ["## What it refuses", "", *_table(header, rows)]


def _targets(figures: Figures, split: str) -> list[str]:
    rows = []
    for target in TARGETS:
        found = target.met(figures)
        verdict = "not measured"
        if found is not None:
            verdict = f"{'met' if found[1] else '**missed**'}: {_plain(found[0])}"
        rows.append((target.words, verdict))
    return [
        f"## Against the targets ({split} split)",
        "",
        *_table(("target", "result"), rows),
    ]


def _defects(path: Path) -> list[str]:
    text = path.read_text(encoding="utf-8").strip() if path.exists() else ""
    return ["## Known defects", "", text or "None written down yet."]


def _table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> list[str]:
    lines = [_line(header), _line(["---"] * len(header))]
    return [*lines, *(_line(row) for row in rows), ""]


def _line(cells: Sequence[Any]) -> str:
    return "| " + " | ".join(str(cell).replace("|", "/") for cell in cells) + " |"


def _cell(value: Any, *, signed: bool = False) -> str:
    if isinstance(value, Mapping):
        low, high = value.get("low"), value.get("high")
        return _span(value.get("value"), low, high, signed=signed)
    return _plain(value)


def _span(value: Any, low: Any, high: Any, *, signed: bool = False) -> str:
    if _absent(value):
        return "-"
    if _absent(low) or _absent(high):
        return f"{value:+.3f}" if signed else f"{value:.3f}"
    if signed:
        return f"{value:+.3f} [{low:+.3f}, {high:+.3f}]"
    return f"{value:.3f} [{low:.2f}-{high:.2f}]"


def _plain(value: Any) -> str:
    return "-" if _absent(value) else f"{value:.3f}"


def _absent(value: Any) -> bool:
    return value is None or math.isnan(value)


def _read(path: Path) -> dict[str, Any] | None:
    if not path.exists():
        return None
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataFault(f"{path.name} is no JSON: write it again") from error
    return content
