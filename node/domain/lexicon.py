"""The vocabulary of a breast ultrasound report: one row per term.

A row holds the key that we store, the DICOM code, the FHIR system and both
display languages. SR writer, FHIR mapping, review page, Mini Program and
training labels all read this table. Codes: PS3.16 CID 6018-6028, 6151-6155;
SNOMED CT and ACR BI-RADS terms are licensed by their owners and are used here
as codes only, without their definitions.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType

from node.domain.errors import ErrorKind, NodeError

PRIVATE_SCHEME = "99SONONODE"
PRIVATE_SCHEME_UID = "2.25.302567410295148372091187634512093847561"
PRIVATE_SCHEME_NAME = "sononode breast ultrasound concepts"

FHIR_SYSTEM: Mapping[str, str] = MappingProxyType(
    {
        "DCM": "http://dicom.nema.org/resources/ontology/DCM",
        "SCT": "http://snomed.info/sct",
        "LN": "http://loinc.org",
        "UCUM": "http://unitsofmeasure.org",
        "RADLEX": "http://www.radlex.org",
        PRIVATE_SCHEME: f"urn:oid:{PRIVATE_SCHEME_UID}",
    }
)
RADLEX_CDE = "http://hl7.org/fhir/us/breast-radiology/CodeSystem/RadLexCDE"


@dataclass(frozen=True)
class Concept:
    """A coded term with its meaning (PS3.3 8.1) and our own display texts.

    `version` is the Coding Scheme Version, Type 1C for the scheme BI.
    """

    scheme: str
    value: str
    meaning: str
    zh: str
    en: str
    version: str | None = None


@dataclass(frozen=True)
class Term:
    """One value that a field may take; `key` is what is stored and exchanged."""

    key: str
    concept: Concept


@dataclass(frozen=True)
class Field:
    """One descriptor of a lesion: its name item and the values it may take."""

    key: "FieldKey"
    concept: Concept
    terms: tuple[Term, ...]
    multiple: bool = False

    def term(self, key: str) -> Term:
        """Return the term with `key`; INVALID when the field has no such term."""
        for term in self.terms:
            if term.key == key:
                return term
        raise NodeError(
            f"{key!r} is not a value of {self.key.value}",
            ErrorKind.INVALID,
            expression=self.key.value,
        )


class FieldKey(StrEnum):
    """The fields of the lexicon, named as in BI-RADS US."""

    SHAPE = "shape"
    ORIENTATION = "orientation"
    MARGIN = "margin"
    LESION_BOUNDARY = "lesion_boundary"
    CALCIFICATIONS = "calcifications"
    ECHO_PATTERN = "echo_pattern"
    POSTERIOR_FEATURES = "posterior_features"


def _dcm(value: str, meaning: str, zh: str, en: str | None = None) -> Concept:
    return Concept("DCM", value, meaning, zh, en or meaning)


def _sct(value: str, meaning: str, zh: str, en: str | None = None) -> Concept:
    return Concept("SCT", value, meaning, zh, en or meaning)


def _terms(rows: Mapping[str, Concept]) -> tuple[Term, ...]:
    return tuple(Term(key, concept) for key, concept in rows.items())


SHAPE = Field(
    FieldKey.SHAPE,
    _sct("107644003", "Shape", "形状"),
    _terms(
        {
            "oval": _sct("84360004", "Ovoid shape (Oval)", "椭圆形", "Oval"),
            "round": _sct("42700002", "Round shape", "圆形", "Round"),
            "irregular": _sct("49608001", "Irregular", "不规则形"),
        }
    ),
)
ORIENTATION = Field(
    FieldKey.ORIENTATION,
    _dcm("111354", "Orientation", "方位"),
    _terms(
        {
            "parallel": _dcm("111355", "Parallel", "平行"),
            "not_parallel": _dcm("111356", "Not parallel", "不平行"),
        }
    ),
)
MARGIN = Field(
    FieldKey.MARGIN,
    # 112233002 replaced the retired DCM 111037 "Margins" in CID 6334.
    _sct("112233002", "Margin", "边缘"),
    _terms(
        {
            "circumscribed": _sct(
                "129738007", "Circumscribed lesion", "完整", "Circumscribed"
            ),
            "indistinct": _sct("129741003", "Indistinct lesion", "模糊", "Indistinct"),
            "angular": _dcm("111343", "Angular margins", "成角", "Angular"),
            "microlobulated": _sct(
                "129739004", "Microlobulated lesion", "微小分叶", "Microlobulated"
            ),
            "spiculated": _sct("129742005", "Spiculated lesion", "毛刺", "Spiculated"),
        }
    ),
    multiple=True,
)
LESION_BOUNDARY = Field(
    FieldKey.LESION_BOUNDARY,
    _dcm("111357", "Lesion boundary", "病灶界限"),
    _terms(
        {
            "abrupt_interface": _dcm("111358", "Abrupt interface", "锐利"),
            "echogenic_halo": _dcm("111359", "Echogenic halo", "回声晕"),
        }
    ),
)
CALCIFICATION_TYPE = _dcm("111009", "Calcification Type", "钙化类型")
CALCIFICATION_DISTRIBUTION = _dcm("111008", "Calcification Distribution", "钙化分布")
MICROCALCIFICATIONS = _sct(
    "44771000", "Microcalcifications of the breast", "微小钙化", "Microcalcifications"
)
CALCIFICATIONS_NONE = Concept(
    PRIVATE_SCHEME, "CALC-NONE", "No calcifications", "未见钙化", "None seen"
)
CALCIFICATIONS = Field(
    FieldKey.CALCIFICATIONS,
    Concept(
        PRIVATE_SCHEME, "CALCIFICATIONS", "Calcifications", "钙化", "Calcifications"
    ),
    _terms(
        {
            "macro": _dcm("111345", "Macrocalcifications", "大钙化灶"),
            "in_mass": _dcm(
                "111346",
                "Calcifications within a mass",
                "病变内微小钙化",
                "Microcalcifications in a mass",
            ),
            "outside_mass": _dcm(
                "111347",
                "Calcifications outside of a mass",
                "病变外微小钙化",
                "Microcalcifications outside a mass",
            ),
            "intraductal": Concept(
                PRIVATE_SCHEME,
                "CALC-DUCT",
                "Intraductal microcalcifications",
                "导管内微小钙化",
                "Intraductal microcalcifications",
            ),
        }
    ),
    multiple=True,
)
ECHO_PATTERN = Field(
    FieldKey.ECHO_PATTERN,
    _dcm("111360", "Echo pattern", "回声模式"),
    _terms(
        {
            "anechoic": _dcm("111361", "Anechoic", "无回声"),
            "hyperechoic": _dcm("111362", "Hyperechoic", "高回声"),
            "complex": _dcm(
                "111363", "Complex", "混合回声", "Complex cystic and solid"
            ),
            "hypoechoic": _dcm("111364", "Hypoechoic", "低回声"),
            "isoechoic": _dcm("111365", "Isoechoic", "等回声"),
        }
    ),
)
POSTERIOR_FEATURES = Field(
    FieldKey.POSTERIOR_FEATURES,
    _dcm("111366", "Posterior acoustic features", "后方回声"),
    _terms(
        {
            "none": _dcm("111367", "No posterior acoustic features", "无改变", "None"),
            "enhancement": _dcm(
                "111368", "Posterior enhancement", "增强", "Enhancement"
            ),
            "shadowing": _dcm("111369", "Posterior shadowing", "衰减", "Shadowing"),
            "combined": _dcm(
                "111370",
                "Combined posterior enhancement and shadowing",
                "混合",
                "Combined",
            ),
        }
    ),
)

FIELDS: Mapping[FieldKey, Field] = MappingProxyType(
    {
        field.key: field
        for field in (
            SHAPE,
            ORIENTATION,
            MARGIN,
            LESION_BOUNDARY,
            CALCIFICATIONS,
            ECHO_PATTERN,
            POSTERIOR_FEATURES,
        )
    }
)


@dataclass(frozen=True)
class Category:
    """A BI-RADS assessment category with its codes and its patient-safety order.

    `rank` orders by suspicion, so that the worst lesion decides the study; 0
    (incomplete) ranks between 3 and 4A because it always needs another look.
    `radlex_cde` is the code in the HL7 breast radiology code system.
    """

    key: str
    rank: int
    concept: Concept
    radlex_cde: str

    @property
    def gated(self) -> bool:
        """Tell whether the patient must have been told before she reads it."""
        return self.key in {"4A", "4B", "4C", "5", "6"}


def _bi(value: str, meaning: str, zh: str, en: str) -> Concept:
    return Concept("BI", value, meaning, zh, en, version="4")


_CATEGORIES = (
    Category(
        "0",
        35,
        _sct(
            "397138000",
            "0 - Incomplete - Need additional imaging evaluation +/- priors",
            "0类 评估不完全",
            "0 Incomplete",
        ),
        "RDE1586_category0IncompleteNeedAdditionalImaging",
    ),
    Category(
        "1",
        10,
        _sct("397140005", "1 - Negative", "1类 阴性", "1 Negative"),
        "RDE1586_category1Negative",
    ),
    Category(
        "2",
        20,
        _sct("397141009", "2 - Benign", "2类 良性", "2 Benign"),
        "RDE1586_category2BenignFinding",
    ),
    Category(
        "3",
        30,
        _sct("397143007", "3 - Probably Benign", "3类 可能良性", "3 Probably benign"),
        "RDE1586_category3ProbablyBenignFinding",
    ),
    Category(
        "4A",
        40,
        _bi("MA.II.A.5.4A", "4A - Low suspicion", "4A类 低度可疑", "4A Low suspicion"),
        "RDE1586_category4ASuspiciousAbnormalityLowLikelihoodOfBeingCancer",
    ),
    Category(
        "4B",
        50,
        _bi(
            "MA.II.A.5.4B",
            "4B - Intermediate suspicion",
            "4B类 中度可疑",
            "4B Moderate suspicion",
        ),
        "RDE1586_category4BSuspiciousAbnormalityModerateLikelihoodOfBeingCancer",
    ),
    Category(
        "4C",
        60,
        _bi(
            "MA.II.A.5.4C",
            "4C - Moderate suspicion",
            "4C类 高度可疑",
            "4C High suspicion",
        ),
        "RDE1586_category4CSuspiciousAbnormalityHighLikelihoodOfBeingCancer",
    ),
    Category(
        "5",
        70,
        _sct(
            "397145000",
            "5 - Highly suggestive of malignancy",
            "5类 高度提示恶性",
            "5 Highly suggestive of malignancy",
        ),
        "RDE1586_category5HighlySuggestiveOfMalignancy",
    ),
    Category(
        "6",
        80,
        _bi(
            "MA.II.A.5.6",
            "6 - Known biopsy proven malignancy",
            "6类 活检证实恶性",
            "6 Known biopsy-proven malignancy",
        ),
        "RDE1586_category6KnownBiopsyProvenMalignancy",
    ),
)
CATEGORIES: Mapping[str, Category] = MappingProxyType(
    {category.key: category for category in _CATEGORIES}
)
# CID 6027 words 4B "Intermediate" and 4C "Moderate", unlike ACR's fifth edition:
# the DICOM meaning is written as the standard has it, people read `zh` and `en`.
SUSPICIOUS = _sct("397144001", "4 - Suspicious", "4类 可疑", "4 Suspicious")
ASSESSMENT_CATEGORY = _dcm("111005", "Assessment Category", "BI-RADS 分类", "BI-RADS")


def category(key: str) -> Category:
    """Return the assessment category `key`; INVALID when BI-RADS has none such."""
    try:
        return CATEGORIES[key]
    except KeyError:
        raise NodeError(
            f"{key!r} is not a BI-RADS category",
            ErrorKind.INVALID,
            expression="assessment_category",
        ) from None


def worst_category(keys: Iterable[str]) -> str | None:
    """Return the most suspicious of `keys`, or None when there is none."""
    ranked = sorted(keys, key=lambda key: category(key).rank)
    return ranked[-1] if ranked else None


# --- anatomy -----------------------------------------------------------------

BREAST = _sct("76752008", "Breast", "乳腺")
LATERALITY: Mapping[str, Concept] = MappingProxyType(
    {"R": _sct("24028007", "Right", "右"), "L": _sct("7771000", "Left", "左")}
)
BREAST_SIDE: Mapping[str, Concept] = MappingProxyType(
    {
        "R": _sct("73056007", "Right breast", "右乳"),
        "L": _sct("80248007", "Left breast", "左乳"),
        "B": _sct("63762007", "Both breasts", "双乳"),
    }
)
CLOCKFACE = _dcm("111014", "Clockface or region", "钟点位置", "Clock position")
_CLOCK_CODES = (
    "129772004",
    "129773009",
    "129774003",
    "129775002",
    "129776001",
    "129777005",
    "129778000",
    "129779008",
    "129780006",
    "129781005",
    "129782003",
    "129783008",
)
CLOCK: Mapping[int, Concept] = MappingProxyType(
    {
        hour: _sct(code, f"{hour} o'clock position", f"{hour}点", f"{hour} o'clock")
        for hour, code in enumerate(_CLOCK_CODES, start=1)
    }
)

# SNOMED CT of a side says left or right; these say where within (DICOM CID 6021).
BREAST_QUADRANT: Mapping[str, Concept] = MappingProxyType(
    {
        "upper_outer": _sct("76365002", "Upper outer quadrant of breast", "外上象限"),
        "upper_inner": _sct("77831004", "Upper inner quadrant of breast", "内上象限"),
        "lower_outer": _sct("33564002", "Lower outer quadrant of breast", "外下象限"),
        "lower_inner": _sct("19100000", "Lower inner quadrant of breast", "内下象限"),
    }
)


def quadrant(laterality: str | None, clock: int | None) -> Concept | None:
    """Return the quadrant of a clock position, None where two meet or none is named.

    The clock is read as the examiner faces the patient: 3 o'clock is the outer side
    of the left breast and the inner side of the right one.
    """
    if laterality not in LATERALITY or clock is None or clock % 3 == 0:
        return None
    height = "upper" if clock in (10, 11, 1, 2) else "lower"
    outer = (clock < 6) == (laterality == "L")
    return BREAST_QUADRANT[f"{height}_{'outer' if outer else 'inner'}"]


# --- findings, numbers, advice -------------------------------------------------

ABNORMAL_STRUCTURE = _sct(
    "49755003", "Morphologically Abnormal Structure", "形态异常结构"
)
MASS = _sct("4147007", "Mass", "肿块")
NORMAL_ULTRASOUND = _sct("169254007", "Ultrasound scan normal", "超声未见异常")
NOT_READ = Concept(
    PRIVATE_SCHEME,
    "NOT-READ",
    "Not read by the algorithm",
    "未经 AI 判读",
    "Not read by AI",
)
PROBABILITY_OF_CANCER = _dcm("111047", "Probability of cancer", "恶性概率")
LONG_AXIS = _sct("103339001", "Long axis", "最大径")
WIDTH = _sct("103355008", "Width", "宽")
HEIGHT = _dcm("121207", "Height", "高")
LENGTH = _sct("410668003", "Length", "第三径", "Third axis")
DISTANCE_FROM_NIPPLE = _dcm("121242", "Distance from nipple", "距乳头距离")
MILLIMETER = Concept("UCUM", "mm", "millimeter", "毫米", "mm")
PERCENT = Concept("UCUM", "%", "Percent", "百分比", "%")

MALIGNANCY = Concept("RADLEX", "RID36042", "Malignancy", "良恶性", "Malignancy")
MALIGNANCY_VALUES: Mapping[str, Concept] = MappingProxyType(
    {
        "benign": _sct("30807003", "Benign", "良性"),
        "malignant": _sct("21594007", "Malignant", "恶性"),
        "indeterminate": _sct("280416009", "Indeterminate result", "不确定"),
    }
)

RECOMMENDED_FOLLOWUP = _dcm("111053", "Recommended Follow-up", "随访建议")
FOLLOWUP: Mapping[str, Concept] = MappingProxyType(
    {
        "normal": _dcm("111140", "Normal interval follow-up", "常规随访"),
        "short": _dcm(
            "111142",
            "Follow-up at short interval (1-11 months)",
            "短期随访",
            "Short-interval follow-up",
        ),
        "additional_imaging": _sct(
            "16310003", "Diagnostic ultrasonography", "补充超声检查", "More ultrasound"
        ),
        "consider_biopsy": _dcm("111143", "Biopsy should be considered", "考虑活检"),
        "core_biopsy": _dcm("111145", "Histology using core biopsy", "空芯针活检"),
        "strong_biopsy": _dcm(
            "111148", "Biopsy should be strongly considered", "强烈建议活检"
        ),
        "act": _dcm(
            "111149",
            "Highly suggestive of malignancy - take appropriate action",
            "积极处理",
            "Take appropriate action",
        ),
        "act_known": _dcm(
            "111122",
            "Known biopsy proven malignancy - take appropriate action",
            "按既定方案处理",
            "Continue the care plan",
        ),
    }
)
FOLLOWUP_FOR_CATEGORY: Mapping[str, str] = MappingProxyType(
    {
        "0": "additional_imaging",
        "1": "normal",
        "2": "normal",
        "3": "short",
        "4A": "consider_biopsy",
        "4B": "core_biopsy",
        "4C": "strong_biopsy",
        "5": "act",
        "6": "act_known",
    }
)

# --- the report around the findings --------------------------------------------

BREAST_ULTRASOUND = _sct(
    "47079000", "Ultrasonography of breast", "乳腺超声检查", "Breast ultrasound"
)
MEASUREMENT_REPORT = _dcm("126000", "Imaging Measurement Report", "影像测量报告")
MEASUREMENT_GROUP = _dcm("125007", "Measurement Group", "测量组")
VISUAL_EXPLANATION = _dcm("130401", "Visual explanation", "可视化解释")
CLASS_ACTIVATION = _dcm(
    "130403", "Gradient-weighted class activation", "梯度加权类激活图"
)
OF_INTEREST = _dcm("113000", "Of Interest", "关键图像", "Key images")
INCORRECT_WORKLIST_ENTRY = _dcm(
    "113038",
    "Incorrect Modality Worklist Entry",
    "设备工作列表条目有误",
    "Incorrect worklist entry",
)
REJECTED_FOR_PATIENT_SAFETY = _dcm(
    "113037",
    "Rejected for Patient Safety Reasons",
    "因患者安全原因撤销",
    "Rejected for patient safety",
)
IMAGING_REPORT = Concept(
    "LN", "18748-4", "Diagnostic Imaging Report", "诊断影像报告", "Imaging report"
)
ARTIFICIAL_INTELLIGENCE = _dcm("123110", "Artificial Intelligence", "人工智能")
LANGUAGES: Mapping[str, Concept] = MappingProxyType(
    {
        "zh-CN": Concept("RFC5646", "zh-CN", "Chinese (China)", "中文", "Chinese"),
        "en": Concept("RFC5646", "en", "English", "英文", "English"),
    }
)
REPORT_CODES: Mapping[str, Concept] = MappingProxyType(
    {
        "U": Concept("LN", "24601-7", "US Breast", "乳腺超声", "Breast ultrasound"),
        "L": Concept("LN", "26215-4", "US Breast - left", "左乳超声", "Left breast US"),
        "R": Concept(
            "LN", "26216-2", "US Breast - right", "右乳超声", "Right breast US"
        ),
        "B": Concept(
            "LN", "26214-7", "US Breast - bilateral", "双乳超声", "Bilateral breast US"
        ),
    }
)


def check_values(key: FieldKey, values: tuple[str, ...]) -> None:
    """Raise INVALID unless `values` are terms of the field and as many as it takes.

    An empty tuple says "assessed, none seen" and only calcifications have that.
    """
    field = FIELDS[key]
    for value in values:
        field.term(value)
    if not values and key is not FieldKey.CALCIFICATIONS:
        raise NodeError(
            f"{key.value} has no value; leave it out when it was not assessed",
            ErrorKind.INVALID,
            expression=key.value,
        )
    if len(values) > 1 and not field.multiple:
        raise NodeError(
            f"{key.value} takes one value, got {len(values)}",
            ErrorKind.INVALID,
            expression=key.value,
        )
