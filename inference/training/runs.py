"""The folder of one training run: what went in, how it went, what came out.

`config.json` says what decides the weights, `metrics.jsonl` holds one line per check,
`model.pt` the state to go on from. Pictures, figures and the card follow at the end.
"""

from __future__ import annotations

import hashlib
import json
import math
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from inference.training.data import Catalogue

CHECKPOINT = "model.pt"
CONFIG = "config.json"
LOG = "metrics.jsonl"
_LIBRARIES = ("sononode", "torch", "torchvision", "numpy", "pillow", "safetensors")


def write_config(
    directory: Path,
    recipe: Mapping[str, Any],
    device: str,
    splits: Mapping[str, Catalogue],
) -> None:
    """Write what decides the weights: recipe, data, program, libraries, machine."""
    write_json(
        directory / CONFIG,
        {
            "recipe": dict(recipe),
            "device": device,
            "data": {name: _summary(part) for name, part in splits.items()},
            "program_sha256": program_fingerprint(),
            "libraries": library_versions(),
            "python": platform.python_version(),
            "machine": platform.machine(),
        },
    )


def write_log(directory: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    """Write the log of checks as JSON lines, whole: a resumed run leaves no gap."""
    text = "".join(json.dumps(without_nan(line)) + "\n" for line in lines)
    _replace(directory / LOG, text)


def read_log(directory: Path) -> list[dict[str, Any]]:
    """Return the log of checks; empty when there is none."""
    path = directory / LOG
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def write_json(path: Path, content: Any) -> None:
    """Write figures as JSON, None where there is no number."""
    text = json.dumps(without_nan(content), indent=2, ensure_ascii=False)
    _replace(path, text + "\n")


def without_nan(value: Any) -> Any:
    """Return figures with None where there is no number; JSON knows no NaN."""
    if isinstance(value, Mapping):
        return {key: without_nan(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def fingerprint(catalogue: Catalogue) -> str:
    """Return the SHA-256 of what a network sees of a split: pixels, masks, labels."""
    digest = hashlib.sha256()
    for names in (catalogue.names, catalogue.sets, catalogue.groups):
        digest.update("\0".join(names).encode())
    known = catalogue.choices
    for part in (
        catalogue.pixels,
        catalogue.masks,
        catalogue.malignancy,
        catalogue.birads,
        catalogue.margin,
        *(known[field] for field in sorted(known)),
    ):
        digest.update(part.contiguous().numpy().tobytes())
    return digest.hexdigest()


def program_fingerprint() -> str:
    """Return the SHA-256 of the sources that train and read."""
    digest = hashlib.sha256()
    root = Path(__file__).parents[1]
    for path in sorted(root.rglob("*.py")):
        digest.update(path.relative_to(root).as_posix().encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


def library_versions() -> dict[str, str]:
    """Return the versions of the libraries that numbers depend on."""
    found = {}
    for name in _LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _summary(catalogue: Catalogue) -> dict[str, Any]:
    counts: dict[str, dict[str, int]] = {}
    for name in sorted(set(catalogue.sets)):
        rows = [row for row, found in enumerate(catalogue.sets) if found == name]
        truth = catalogue.malignancy[rows]
        counts[name] = {
            "benign": int((truth == 0).sum()),
            "malignant": int((truth == 1).sum()),
            "normal": int((catalogue.lesion[rows] == 0).sum()),
            "groups": len({catalogue.groups[row] for row in rows}),
        }
    return {"sha256": fingerprint(catalogue), "images": len(catalogue), "sets": counts}


def _replace(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)
