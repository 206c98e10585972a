"""Our CodeSystems and ValueSets: the lexicon as FHIR R4 serves terminology.

Generated from `node.domain.lexicon` with both languages; what a binding of one of
our profiles allows (`fhir.conformance.profiles`) is read from the same sets.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache

from fhir.content import concepts
from fhir.encoding.wire import Json
from node.domain import lexicon
from node.domain.access import Role
from node.domain.completion import EvidenceKind
from node.domain.disclosure import ReleaseState
from node.domain.lexicon import Concept, Field

PUBLISHER = "sononode"
ZH = "zh-CN"
LEXICON = "breast-ultrasound-lexicon"
_CODE_SYSTEM = f"{concepts.BASE}/CodeSystem"
VALUE_SET = f"{concepts.BASE}/ValueSet"


@dataclass(frozen=True)
class Words:
    """The same in both languages."""

    zh: str
    en: str


@dataclass(frozen=True)
class Code:
    """One code of a system; `display` is what the system itself calls it."""

    system: str
    code: str
    words: Words
    display: str


@dataclass(frozen=True)
class CodeSystem:
    """A system of our own; all of its codes."""

    id: str
    url: str
    words: Words
    codes: tuple[Code, ...]


@dataclass(frozen=True)
class ValueSet:
    """A set that is listed whole."""

    id: str
    words: Words
    codes: tuple[Code, ...]

    @property
    def url(self) -> str:
        return f"{VALUE_SET}/{self.id}"

    def holds(self, system: str | None, code: str | None) -> bool:
        """Tell whether a coding is in the set."""
        return (system, code) in _held(self.id)


@cache
def _held(value_set_id: str) -> frozenset[tuple[str, str]]:
    return frozenset((c.system, c.code) for c in VALUE_SETS[value_set_id].codes)


def translated(name: str, words: Words) -> Json:
    """Return an element in English with its Chinese translation as an extension."""
    extension = concepts.translation(ZH, words.zh)
    return {name: words.en, f"_{name}": {"extension": [extension]}}


# --- the codes ----------------------------------------------------------------------

_RELEASE = f"{_CODE_SYSTEM}/release-state"
_STATE = f"{_CODE_SYSTEM}/study-state"
_EVIDENCE = f"{_CODE_SYSTEM}/completeness-evidence"
_SIDE = f"{_CODE_SYSTEM}/side"
_STAFF = f"{_CODE_SYSTEM}/staff-role"
_OWN_WORDS: Mapping[str, Mapping[str, Words]] = {
    _RELEASE: {
        ReleaseState.READY: Words(
            "已出报告，医生将告知", "ready; the doctor will tell"
        ),
        ReleaseState.RELEASED: Words("已向患者开放", "released to the patient"),
        ReleaseState.WITHDRAWN: Words("已撤回", "withdrawn"),
    },
    _STATE: {
        "complete": Words("图像齐全", "all images have come"),
        "incomplete": Words("图像可能不全", "images may be missing"),
        "discontinued": Words("检查中止", "the examination was discontinued"),
    },
    _EVIDENCE: {
        EvidenceKind.MPPS: Words("设备检查步骤（MPPS）", "performed procedure step"),
        EvidenceKind.COMMITMENT: Words("存储确认清单", "storage commitment list"),
        EvidenceKind.RELEASE: Words("连接已释放", "released associations"),
        EvidenceKind.SILENCE: Words("静默超时", "silence"),
    },
    _SIDE: {
        "R": Words("右", "right"),
        "L": Words("左", "left"),
        "B": Words("双", "both"),
    },
    _STAFF: {
        Role.RADIOLOGIST.value: Words("诊断医师", "radiologist"),
        Role.SENIOR_RADIOLOGIST.value: Words("高级诊断医师", "senior radiologist"),
    },
}


def _own(system: str) -> tuple[Code, ...]:
    return tuple(Code(system, str(c), w, w.en) for c, w in _OWN_WORDS[system].items())


def _of_concept(concept: Concept) -> Iterator[Code]:
    system = lexicon.FHIR_SYSTEM.get(concept.scheme)
    if system is not None:
        words = Words(concept.zh, concept.en)
        yield Code(system, concept.value, words, concept.meaning)


def _of_key(key: str, concept: Concept) -> Code:
    return Code(concepts.PRIVATE, key, Words(concept.zh, concept.en), concept.en)


def _terms(field: Field) -> Iterator[Code]:
    """Yield the codes of a field's values: ours, and the standard's for the same."""
    for term in field.terms:
        yield _of_key(term.key, term.concept)
        yield from _of_concept(term.concept)
    if field is lexicon.CALCIFICATIONS:
        yield from _of_concept(lexicon.CALCIFICATIONS_NONE)


def _categories() -> Iterator[Code]:
    for category in lexicon.CATEGORIES.values():
        yield _of_key(category.key, category.concept)
        yield from _of_concept(category.concept)
        words = Words(category.concept.zh, category.concept.en)
        yield Code(lexicon.RADLEX_CDE, category.radlex_cde, words, words.en)


def _followups() -> Iterator[Code]:
    for key, concept in lexicon.FOLLOWUP.items():
        yield _of_key(key, concept)
        yield from _of_concept(concept)


def _all_of(found: Iterable[Concept]) -> tuple[Code, ...]:
    return tuple(code for concept in found for code in _of_concept(concept))


def _set(name: str, zh: str, en: str, codes: Iterable[Code]) -> ValueSet:
    return ValueSet(name, Words(zh, en), tuple(dict.fromkeys(codes)))


def field_set(field: Field) -> str:
    """Return the id of the value set of a lesion's descriptor."""
    return f"lesion-{field.key.value.removeprefix('lesion_').replace('_', '-')}"


VALUE_SETS: Mapping[str, ValueSet] = {
    one.id: one
    for one in (
        *(
            _set(
                field_set(f),
                f"病灶{f.concept.zh}",
                f"Lesion: {f.concept.en}",
                _terms(f),
            )
            for f in lexicon.FIELDS.values()
        ),
        _set(
            "bi-rads-category",
            "BI-RADS 超声分类",
            "BI-RADS ultrasound category",
            _categories(),
        ),
        _set("follow-up", "随访建议", "Recommended follow-up", _followups()),
        _set(
            "breast-side",
            "乳腺侧别",
            "Side of the breast",
            _all_of([lexicon.BREAST, *lexicon.BREAST_SIDE.values()]),
        ),
        _set(
            "clock-position",
            "钟点位置",
            "Clock position",
            _all_of(lexicon.CLOCK.values()),
        ),
        _set(
            "breast-ultrasound",
            "乳腺超声检查",
            "Breast ultrasound examination",
            _all_of(lexicon.REPORT_CODES.values()),
        ),
        _set(
            "release-state", "对患者开放状态", "Release to the patient", _own(_RELEASE)
        ),
        _set(
            "study-state", "检查图像是否齐全", "Completeness of a study", _own(_STATE)
        ),
        _set(
            "completeness-evidence",
            "检查完整性的依据",
            "What told that a study is complete",
            _own(_EVIDENCE),
        ),
        _set("side", "侧别", "Side", _own(_SIDE)),
        _set("staff-role", "签发人员角色", "Role of who signs", _own(_STAFF)),
    )
}


def _lexicon_codes() -> Iterator[Code]:
    for field in lexicon.FIELDS.values():
        yield _of_key(field.key.value, field.concept)
        yield from _of_concept(field.concept)
        yield from _terms(field)
    yield _of_key(concepts.CATEGORY_KEY, lexicon.ASSESSMENT_CATEGORY)
    yield from _categories()
    yield from _followups()
    yield from _of_concept(lexicon.NOT_READ)
    yield from _of_concept(concepts.SIZE)


CODE_SYSTEMS: Mapping[str, CodeSystem] = {
    one.id: one
    for one in (
        CodeSystem(
            LEXICON,
            concepts.PRIVATE,
            Words("乳腺超声术语", "Breast ultrasound lexicon"),
            tuple(
                dict.fromkeys(
                    code for code in _lexicon_codes() if code.system == concepts.PRIVATE
                )
            ),
        ),
        *(
            CodeSystem(
                url.rpartition("/")[2],
                url,
                VALUE_SETS[url.rpartition("/")[2]].words,
                _own(url),
            )
            for url in _OWN_WORDS
        ),
    )
}


# --- as resources -------------------------------------------------------------------


def heading(resource_id: str, url: str, words: Words, version: str) -> Json:
    """Return what our definitions have in common."""
    name = "".join(part.capitalize() for part in resource_id.split("-"))
    return {
        "id": resource_id,
        "language": "en",
        "url": url,
        "version": version,
        "name": name,
        **translated("title", words),
        "status": "active",
        "experimental": False,
        "publisher": PUBLISHER,
        **translated("description", words),
    }


def to_code_system(system: CodeSystem, version: str) -> Json:
    """Return a CodeSystem with all of its concepts."""
    return {
        "resourceType": "CodeSystem",
        **heading(system.id, system.url, system.words, version),
        "caseSensitive": True,
        "content": "complete",
        "count": len(system.codes),
        "concept": [concept_of(code) for code in system.codes],
    }


def concept_of(code: Code) -> Json:
    """Return a code with what it is called in both languages."""
    told = [(ZH, code.words.zh), ("en", code.words.en)]
    designations = [{"language": language, "value": text} for language, text in told]
    return {"code": code.code, "display": code.display, "designation": designations}


def to_value_set(value_set: ValueSet, version: str) -> Json:
    """Return a ValueSet that lists its codes."""
    systems = dict.fromkeys(code.system for code in value_set.codes)
    return {
        "resourceType": "ValueSet",
        **heading(value_set.id, value_set.url, value_set.words, version),
        "immutable": False,
        "compose": {
            "include": [
                {
                    "system": system,
                    "concept": [
                        concept_of(c) for c in value_set.codes if c.system == system
                    ],
                }
                for system in systems
            ]
        },
    }
