"""The habits of real ultrasound machines on the network, from their statements."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from pydicom.uid import (
    UID,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGBaseline8Bit,
    RLELossless,
)

from dicom_scp.simulation.scanner import Layout, Machine


@dataclass(frozen=True)
class Profile:
    """The habits of one kind of machine on the network.

    `stills` and `cines` are the transfer syntaxes of its images. `per_image` opens an
    association for each of them. `commits` asks for storage commitment, `steps` tells
    performed procedure steps, `measures` writes a Structured Report.
    """

    machine: Machine
    words: str
    stills: UID
    cines: UID
    max_pdu: int = 65_536
    per_image: bool = False
    steps: bool = True
    commits: bool = True
    measures: bool = False


def _machine(model: str, station: str, charset: str | list[str], at: Layout) -> Machine:
    # Names say what is imitated, so that nobody takes an object for the maker's own.
    return Machine("sononode simulator", model, station, charset, at)


PROFILES: Final[dict[str, Profile]] = {
    "logiq": Profile(
        _machine("LOGIQ-like SIM-1", "SIM-GE", "ISO_IR 192", Layout.WIDE),
        "small PDUs, an association for each image, measurements as Comprehensive SR",
        stills=ExplicitVRLittleEndian,
        cines=JPEGBaseline8Bit,
        max_pdu=32_768,
        per_image=True,
        measures=True,
    ),
    "epiq": Profile(
        _machine("EPIQ-like SIM-4", "SIM-PH", "ISO_IR 192", Layout.WIDE),
        "JPEG throughout, every service on an association of its own",
        stills=JPEGBaseline8Bit,
        cines=JPEGBaseline8Bit,
        measures=True,
    ),
    "mindray": Profile(
        _machine("Resona-like SIM-2", "SIM-MR", "GB18030", Layout.COLUMN),
        "names in GB18030, RLE",
        stills=RLELossless,
        cines=JPEGBaseline8Bit,
        measures=True,
    ),
    "esaote": Profile(
        _machine("MyLab-like SIM-5", "SIM-ES", "ISO_IR 100", Layout.COLUMN),
        "Implicit VR, Latin names, no measurements",
        stills=ImplicitVRLittleEndian,
        cines=JPEGBaseline8Bit,
        max_pdu=16_384,
    ),
    "old": Profile(
        _machine("DC-like SIM-3", "SIM-DC", ["", "ISO 2022 IR 58"], Layout.COLUMN),
        "names in ISO 2022 IR 58, neither steps nor commitment",
        stills=RLELossless,
        cines=RLELossless,
        max_pdu=16_384,
        steps=False,
        commits=False,
    ),
}
