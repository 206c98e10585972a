"""A tiny tree of labelled images, and a network thin enough for tests of training."""

import csv
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from torchvision.models.resnet import Bottleneck, ResNet

COLUMNS = [
    "id",
    "set",
    "file",
    "mask",
    "shipped",
    "label",
    "split",
    "group_id",
    "birads",
    "shape",
    "orientation",
    "boundary",
    "calcification",
    "echogenicity",
    "posterior",
    "age",
    "device",
    "calliper_marks",
    "margin_circumscribed",
    "margin_indistinct",
    "margin_angular",
    "margin_microlobulated",
    "margin_spiculated",
]
MARGINS = [name for name in COLUMNS if name.startswith("margin_")]


def make_row(name: str, index: int, split: str, label: str) -> dict[str, str]:
    row = dict.fromkeys(COLUMNS, "")
    key = f"{name}_{split}_{index}"
    row |= {
        "id": key,
        "set": name,
        "file": f"{name}/images/{key}.png",
        "mask": "" if label == "normal" else f"{name}/masks/{key}.png",
        "shipped": "1",
        "label": label,
        "split": split,
        "group_id": f"{name}_p{index // 2}_{split}",
        "orientation": "" if label == "normal" else "parallel",
        "calliper_marks": str(index % 2),
        "device": "Phantom 1",
    }
    if name == "breast" and label != "normal":
        bad = label == "malignant"
        row |= {
            "birads": "5" if bad else "3",
            "shape": "irregular" if bad else "oval",
            "boundary": "echogenic halo" if bad else "abrupt interface",
            "calcification": "none",
            "echogenicity": "hypoechoic",
            "posterior": "shadowing" if bad else "none",
        }
        row |= {name: str(int(bad)) for name in MARGINS}
        row["margin_circumscribed"] = str(int(not bad))
    return row


def draw(data: Path, row: dict[str, str], random: np.random.Generator) -> None:
    grey = random.rayleigh(50, (90, 120)).clip(0, 255).astype(np.uint8)
    mask = np.zeros((90, 120), np.uint8)
    if row["mask"]:
        top, left = random.integers(10, 40), random.integers(10, 60)
        mask[top : top + 25, left : left + 40] = 255
        grey[mask > 0] //= 4 if row["label"] == "malignant" else 2
        Image.fromarray(mask).save(data / row["mask"])
    Image.fromarray(grey).save(data / row["file"])


@pytest.fixture(scope="session")
def write_tree() -> Callable[[Path], Path]:
    """Return a function that writes three sets with all splits into a folder."""

    def write(data: Path) -> Path:
        random = np.random.default_rng(4)
        for name in ("busi", "breast", "busbra"):
            (data / name / "images").mkdir(parents=True)
            (data / name / "masks").mkdir()
            rows = [
                make_row(name, index, split, label)
                for split in ("train", "val", "test")
                for index, label in enumerate(
                    ["benign", "malignant"] * 2 + ["normal"] * (name == "busi")
                )
            ]
            for row in rows:
                draw(data, row, random)
            rows.append(make_row(name, 99, "excluded", "benign"))
            with (data / name / "manifest.csv").open("w", newline="") as lines:
                writer = csv.DictWriter(lines, COLUMNS)
                writer.writeheader()
                writer.writerows(rows)
        return data

    return write


@pytest.fixture(scope="session")
def tree(
    write_tree: Callable[[Path], Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A tree that nobody changes."""
    return write_tree(tmp_path_factory.mktemp("sets"))


@contextmanager
def thin() -> Iterator[None]:
    """Make networks of the real trunk's stages and widths, with one thin block each."""

    def make(*, weights: None, **kwargs: Any) -> ResNet:
        return ResNet(Bottleneck, [1, 1, 1, 1], width_per_group=4, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("inference.network.resnet50", make)
        yield


@pytest.fixture(scope="module")
def thin_trunk() -> Iterator[None]:
    """Make thin networks in the whole module."""
    with thin():
        yield
