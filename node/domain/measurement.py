"""What the ultrasound machine itself measured, as its Structured Report tells it."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

# The SOP Classes in which machines tell measurements (PS3.4 B.5).
STRUCTURED_REPORTS = (
    "1.2.840.10008.5.1.4.1.1.88.11",  # Basic Text SR
    "1.2.840.10008.5.1.4.1.1.88.22",  # Enhanced SR
    "1.2.840.10008.5.1.4.1.1.88.33",  # Comprehensive SR
    "1.2.840.10008.5.1.4.1.1.88.34",  # Comprehensive 3D SR
)


@dataclass(frozen=True)
class Code:
    """A coded term (PS3.3 8.8) as the machine wrote it."""

    scheme: str
    value: str
    meaning: str


@dataclass(frozen=True)
class Measurement:
    """One numeric content item (PS3.3 C.18.1), or a coded one, of a machine's report.

    `value` is the decimal as sent, `0.910` stays `0.910`; None when the machine left
    it empty, which is not zero: `qualifier` may say why. `unit` is UCUM. `group` are
    the headings above, outermost first, with the tracking identifier of the lesion.
    `term` is set instead of `value` where the machine chose a word. `image` is the
    SOP Instance UID of the picture it was measured in.
    """

    group: tuple[str, ...]
    name: Code
    value: str | None = None
    unit: str = ""
    qualifier: str = ""
    term: Code | None = None
    site: str = ""
    derivation: str = ""
    image: str | None = None
    frame: int | None = None


@dataclass(frozen=True)
class MachineReport:
    """One Structured Report of a machine: its title, maker, and what it holds.

    `algorithm` names the software when the values come from one, so that nobody
    takes them for a person's. `left_out` counts items beyond the limit.
    """

    sop_instance_uid: str
    title: str
    device: str
    algorithm: str
    verified: bool
    measurements: tuple[Measurement, ...]
    left_out: int = 0


_ZH: Mapping[tuple[str, str], str] = MappingProxyType(
    {
        ("SCT", "103339001"): "长径",
        ("SCT", "103340004"): "短径",
        ("SCT", "103355008"): "宽",
        ("SCT", "103359002"): "间距",
        ("SCT", "118565006"): "体积",
        ("SCT", "410668003"): "长度",
        ("SCT", "42798000"): "面积",
        ("SCT", "81827009"): "直径",
        ("SCT", "131197000"): "深度",
        ("DCM", "121207"): "高",
        ("DCM", "121242"): "距乳头距离",
        ("DCM", "111005"): "评估分类",
        ("DCM", "111047"): "恶性概率",
        ("LN", "20352-7"): "搏动指数",
        ("LN", "11695-0"): "收缩期峰值流速",
        ("LN", "11653-9"): "舒张末期流速",
        ("LN", "12023-4"): "阻力指数",
        ("LN", "12008-5"): "搏动指数",
    }
)
# Codes of older objects (SNOMED-RT style) for the same things.
_TODAY: Mapping[tuple[str, str], tuple[str, str]] = MappingProxyType(
    {
        ("SRT", "G-A185"): ("SCT", "103339001"),
        ("SRT", "G-A186"): ("SCT", "103340004"),
        ("SRT", "G-A220"): ("SCT", "103355008"),
        ("SRT", "G-D705"): ("SCT", "118565006"),
        ("SRT", "G-A22A"): ("SCT", "410668003"),
        ("SRT", "G-A166"): ("SCT", "42798000"),
        ("SRT", "M-02550"): ("SCT", "81827009"),
    }
)


def chinese_name(code: Code) -> str:
    """Return what is measured in 中文, the machine's words where we know none."""
    key = (code.scheme, code.value)
    return _ZH.get(_TODAY.get(key, key), code.meaning)
