"""Measures what a released model refuses: pictures that are no breast ultrasound.

Every picture goes through the reader itself, as the worst case would send it: under a
header that says "breast, B-mode". DICOM files go a second time under their own header.
Breast images of the validation split tell what refusing costs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from rich.console import Console
from rich.table import Table

from inference.assess import ImageToRead, Reader
from inference.images import image_to_read
from inference.network import TorchNetwork, load_model
from inference.record import WEIGHTS
from inference.select import READABLE_SOP_CLASSES, ImageHeader
from inference.training.manifest import read_grey, read_listing
from inference.training.runs import write_json
from inference.unfamiliar import read_familiarity
from node.domain.errors import NodeError
from node.imaging import BytesReader, StoredImage, read_header, transfer_syntax_of

Pixels = NDArray[np.uint8]
Group = tuple[str, list[ImageToRead]]

READ = "read"
PICTURES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".pgm", ".bmp"})
DRAWN = 20
"""Pictures of each kind that are drawn here."""

AT_ONCE = 16


def refusals(reader: Reader, images: Sequence[ImageToRead]) -> Counter[str]:
    """Count, by reason, the images that the reader refuses; `read` are the others."""
    reasons: Counter[str] = Counter()
    for start in range(0, len(images), AT_ONCE):
        some = images[start : start + AT_ONCE]
        reading = reader.read_study(some, tracking_uid=lambda place: place.key)
        refused = reading.findings.not_read
        reasons.update(item.reason for item in refused)
        reasons[READ] += len(some) - len(refused)
    return reasons


def drawn_strangers(seed: int = 1) -> Iterator[Group]:
    """Yield text screens, noise, smooth ramps and clouds without structure."""
    for name, draw in (
        ("text screens", _text),
        ("noise", _noise),
        ("ramps", _ramp),
        ("clouds", _cloud),
    ):
        random = np.random.default_rng(seed)
        pictures = [draw(random) for _ in range(DRAWN)]
        yield name, [as_breast(_rgb(grey), n) for n, grey in enumerate(pictures)]


def folder_of_strangers(folder: Path) -> Iterator[Group]:
    """Yield the pictures of a folder, and its DICOM files as they are and bare.

    Bare is the whole frame under a header that says breast and nothing else. A file
    that cannot be decoded is only counted as it is.
    """
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    pictures = [file for file in files if file.suffix.lower() in PICTURES]
    if pictures:
        yield (
            folder.name,
            [
                as_breast(np.asarray(Image.open(file).convert("RGB")), n)
                for n, file in enumerate(pictures)
            ],
        )
    sent, bare = [], []
    for number, file in enumerate(f for f in files if f.suffix.lower() == ".dcm"):
        content = file.read_bytes()
        header = read_header(content)
        stored = StoredImage.open(BytesReader(content))
        sent.append(image_to_read(header, transfer_syntax_of(header), _opener(content)))
        try:
            middle = stored.frame(stored.number_of_frames // 2)
        except NodeError:
            continue
        bare.append(as_breast(middle, number))
    if sent:
        yield f"{folder.name}, own header", sent
        yield f"{folder.name}, header says breast", bare


def breast_images(data: Path, split: str = "val") -> Iterator[Group]:
    """Yield the labelled breast images of a split, set by set."""
    by_set: dict[str, list[ImageToRead]] = {}
    for number, row in enumerate(read_listing(data, split).rows):
        pixels = np.asarray(read_grey(row, "file").convert("RGB"))
        by_set.setdefault(row.set, []).append(as_breast(pixels, number))
    yield from by_set.items()


def as_breast(pixels: Pixels, number: int) -> ImageToRead:
    """Return RGB pixels as an image whose header says breast, B-mode, no regions."""
    header = ImageHeader(
        sop_class_uid=min(READABLE_SOP_CLASSES, key=len),
        sop_instance_uid=f"2.25.{number + 1}",
        rows=pixels.shape[0],
        columns=pixels.shape[1],
        body_part_examined="BREAST",
    )
    return ImageToRead(header, lambda _: pixels[None])


def measure_strangers(
    data: Annotated[Path, typer.Option(envvar="SONONODE_SAMPLES")],
    strangers: Annotated[
        list[Path] | None, typer.Option(help="Folder of pictures or DICOM files.")
    ] = None,
    model: Annotated[Path, typer.Option(help="Folder of a released model.")] = WEIGHTS,
    json_file: Annotated[Path | None, typer.Option("--json")] = None,
) -> None:
    """Count what a model refuses: strangers, and breast images of `val`."""
    module, record = load_model(model)
    reader = Reader(
        TorchNetwork(module), record, familiarity=read_familiarity(model, record)
    )
    table = Table("group", "images", "refused", "why")
    figures = {}
    folders = (folder_of_strangers(folder) for folder in strangers or ())
    for name, images in chain(breast_images(data), drawn_strangers(), *folders):
        found = refusals(reader, images)
        figures[name] = dict(found)
        table.add_row(
            name,
            str(len(images)),
            f"{1 - found[READ] / max(1, len(images)):.3f}",
            ", ".join(f"{key} {n}" for key, n in found.most_common() if key != READ),
        )
    Console().print(table)
    if json_file is not None:
        write_json(json_file, {"model": record.name, "refusals": figures})


def _opener(content: bytes) -> Callable[[], StoredImage]:
    return lambda: StoredImage.open(BytesReader(content))


def _rgb(grey: NDArray[np.float64]) -> Pixels:
    levels = grey.clip(0, 255).astype(np.uint8)
    return np.repeat(levels[..., None], 3, axis=2)


def _text(random: np.random.Generator) -> NDArray[np.float64]:
    dark = random.random() < 0.7
    paper, ink = (random.integers(0, 30), 210) if dark else (235, 20)
    page = Image.new("L", (640, 480), int(paper))
    font = ImageFont.load_default(size=int(random.integers(10, 26)))
    draw, y = ImageDraw.Draw(page), 8
    while y < 450:
        letters = random.integers(65, 122, int(random.integers(10, 60)))
        words = "".join(chr(code) if code % 7 else " " for code in letters)
        draw.text((int(random.integers(5, 80)), y), words, fill=ink, font=font)
        y += int(random.integers(14, 40))
    return np.asarray(page, dtype=np.float64)


def _noise(random: np.random.Generator) -> NDArray[np.float64]:
    return random.rayleigh(random.integers(20, 80), (480, 640))


def _ramp(random: np.random.Generator) -> NDArray[np.float64]:
    y, x = np.mgrid[0:480, 0:640] / 480
    turn, waves = random.uniform(0, 2 * np.pi), random.uniform(0.5, 5)
    smooth = 128 + 100 * np.sin(waves * (np.cos(turn) * x + np.sin(turn) * y))
    return np.asarray(smooth + random.normal(0, random.choice([0, 1, 4]), x.shape))


def _cloud(random: np.random.Generator) -> NDArray[np.float64]:
    """Return noise whose power falls with frequency, as that of many scenes does."""
    across, down = np.fft.fftfreq(640)[None], np.fft.fftfreq(480)[:, None]
    frequency = np.hypot(across, down)
    frequency[0, 0] = 1
    waves = np.fft.fft2(random.normal(size=frequency.shape))
    scene = np.fft.ifft2(waves / frequency ** random.uniform(0.7, 1.6)).real
    return np.asarray(110 + 45 * (scene - scene.mean()) / scene.std())
