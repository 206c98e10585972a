"""Our profiles: what the node promises of the resources that it writes.

One table. `fhir.conformance.structures` writes it down as StructureDefinitions,
`fhir.conformance.validation` holds resources against it, and every resource that
the node writes names its profile (FHIR R4 5.3).
"""

from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

from fhir.conformance.asking import Extending, Part, Profile, Row
from fhir.conformance.invariants import value_of
from fhir.conformance.surroundings import AROUND
from fhir.conformance.terminology import VALUE_SETS, Words, field_set
from fhir.content import concepts
from fhir.encoding.outcome import Issue
from fhir.encoding.wire import Json, as_list, reference_parts
from node.domain import lexicon
from node.domain.lexicon import Concept

# --- extensions ---------------------------------------------------------------------

_REPORT = ("DiagnosticReport",)
_WORDS = Part("words", "string", Words("文字说明", "in words"))
EXTENSIONS: Mapping[str, Extending] = {
    one.url: one
    for one in (
        Extending(
            "patient-summary",
            _REPORT,
            Words("医生写给患者的话", "The doctor's words for the patient"),
            "string",
        ),
        Extending(
            "not-read",
            _REPORT,
            Words("算法未判读的内容及原因", "What the algorithm did not read, and why"),
            "string",
            max="*",
        ),
        Extending(
            "study-completeness",
            (*_REPORT, "ImagingStudy"),
            Words("检查图像是否齐全", "Whether all images of the study had come"),
            parts=(
                Part("state", "code", Words("状态", "state"), value_set="study-state"),
                Part(
                    "evidence",
                    "code",
                    Words("依据", "what told so"),
                    value_set="completeness-evidence",
                ),
                _WORDS,
            ),
        ),
        Extending(
            "late-images",
            _REPORT,
            Words("签发后到达的图像", "Images that came after the report"),
            parts=(
                Part("count", "unsignedInt", Words("新图像数", "new images")),
                Part("total", "unsignedInt", Words("图像总数", "all images")),
                _WORDS,
            ),
        ),
        Extending(
            "lesion-region",
            ("Observation",),
            Words("病灶在图像上的位置", "Where a lesion lies on its image"),
            parts=(
                Part("sopInstanceUid", "oid", Words("图像", "the image"), min=0),
                Part("frame", "positiveInt", Words("帧", "the frame"), min=0),
                Part("box", "string", Words("像素框", "the box in pixels"), min=0),
            ),
        ),
        Extending(
            "heat-map",
            ("Observation",),
            Words("热力图实例 UID", "SOP Instance UID of the heat map"),
            "string",
            max="*",
        ),
        Extending(
            "distance-from-nipple",
            ("BodyStructure",),
            Words("距乳头距离", "Distance from the nipple"),
            "Quantity",
        ),
        Extending(
            "patient-age",
            ("Patient", *_REPORT),
            Words("患者年龄", "Age of the patient"),
            "string",
        ),
        Extending(
            "release-state",
            _REPORT,
            Words("对患者开放状态", "What the phone may show"),
            "code",
            value_set="release-state",
        ),
        Extending(
            "report-version",
            _REPORT,
            Words("报告版本", "Version of the report"),
            "positiveInt",
        ),
        Extending("exam-kind", _REPORT, Words("检查名称", "The examination"), "string"),
        Extending(
            "department-phone",
            _REPORT,
            Words("科室电话", "Phone of the department"),
            "string",
        ),
        Extending(
            "category",
            _REPORT,
            Words("BI-RADS 分类", "BI-RADS category"),
            "code",
            value_set="bi-rads-category",
        ),
        *(
            Extending(f"{name}-{language}", _REPORT, Words(zh, en), "string")
            for name, zh, en in (
                ("patient-text", "分类说明", "What the category means"),
                ("advice", "建议", "Advice"),
            )
            for language in ("zh", "en")
        ),
        Extending(
            "trend-point",
            _REPORT,
            Words("病灶大小变化", "Size of a lesion over time"),
            parts=(
                Part("side", "code", Words("侧别", "side"), 0, "side"),
                Part("clock", "positiveInt", Words("钟点", "clock position"), 0),
                Part("size_mm", "decimal", Words("大小（毫米）", "size in mm"), 0),
            ),
            max="*",
        ),
    )
}
_OF_MASKED = (
    "release-state",
    "report-version",
    "exam-kind",
    "patient-age",
    "department-phone",
    "category",
    "patient-summary",
    "patient-text-zh",
    "patient-text-en",
    "advice-zh",
    "advice-en",
    "trend-point",
)

# --- profiles -----------------------------------------------------------------------


def _pattern(concept: Concept) -> tuple[str, Json]:
    coding = concepts.coding(concept) or {}
    kept = {key: coding[key] for key in ("system", "code")}
    return "CodeableConcept", {"coding": [kept]}


def _quantity(unit: str) -> tuple[str, Json]:
    return "Quantity", {"system": concepts.UCUM, "code": unit}


_PATIENT = Row("subject", Words("患者", "The patient"), 1, targets=("Patient",))
_IMAGES = Row("derivedFrom", Words("所依据的图像", "The images"), 1)
_VALUE = Words("值", "The value")


def _observation(
    name: str,
    code: Concept,
    words: Words,
    *rows: Row,
    extensions: tuple[str, ...] = (),
) -> Profile:
    """Return the profile of Observations with a code of ours."""
    said = Row("code", words, pattern=_pattern(code))
    shared = (said, _PATIENT, *rows, _IMAGES)
    return Profile(name, "Observation", words, shared, extensions, code)


def _coded(value_set: str, *, is_open: bool = False) -> Row:
    return Row(
        "value[x]",
        _VALUE,
        types=("CodeableConcept",),
        value_set=value_set,
        open=is_open,
    )


def _descriptors() -> Iterator[Profile]:
    for field in lexicon.FIELDS.values():
        name = field_set(field)
        words = VALUE_SETS[name].words
        rows = [_coded(name)]
        if field.multiple:  # several values are several components
            part = Words("多个值之一", "One of several values")
            rows.append(
                Row(
                    "component.value[x]",
                    part,
                    types=("CodeableConcept",),
                    value_set=name,
                )
            )
        else:
            rows.append(Row("component", Words("无", "None"), max="0"))
        yield _observation(name, field.concept, words, *rows)


PROFILES: tuple[Profile, ...] = (
    Profile(
        "breast-ultrasound-report",
        "DiagnosticReport",
        Words("乳腺超声报告", "Breast ultrasound report"),
        (
            Row("category", Words("放射科", "Radiology"), 1),
            Row(
                "code", Words("检查", "The examination"), value_set="breast-ultrasound"
            ),
            _PATIENT,
            Row("effective[x]", Words("检查日期", "Date"), types=("dateTime",)),
            Row(
                "resultsInterpreter",
                Words("签发医生", "Who has signed"),
                targets=("Practitioner", "PractitionerRole"),
            ),
            Row("result", Words("结果", "The results"), 1),
            Row("imagingStudy", Words("所依据的检查", "The study"), 1),
        ),
        ("not-read", "patient-summary", "study-completeness", "late-images"),
    ),
    _observation(
        "lesion",
        lexicon.MEASUREMENT_GROUP,
        Words("病灶", "Lesion"),
        Row("identifier", Words("追踪标识", "Tracking UID"), 1, "1"),
        Row("value[x]", Words("无", "None"), max="0"),
        Row("bodySite", Words("侧别", "Side"), 1, value_set="breast-side"),
        Row("hasMember", Words("描述与分类", "Descriptors and category"), 1),
        extensions=("lesion-region", "heat-map"),
    ),
    *_descriptors(),
    _observation(
        "bi-rads-assessment",
        lexicon.ASSESSMENT_CATEGORY,
        VALUE_SETS["bi-rads-category"].words,
        _coded("bi-rads-category"),
    ),
    _observation(
        "cancer-probability",
        lexicon.PROBABILITY_OF_CANCER,
        Words("恶性概率（算法）", "Probability of cancer, by the algorithm"),
        Row("value[x]", _VALUE, types=("Quantity",), pattern=_quantity("%")),
    ),
    _observation(
        "lesion-size",
        concepts.SIZE,
        Words("病灶大小", "Size of a lesion"),
        Row("value[x]", Words("无", "None"), max="0"),
        Row(
            "component.value[x]",
            Words("长度", "A length"),
            1,
            types=("Quantity",),
            pattern=_quantity("mm"),
        ),
    ),
    _observation(
        "follow-up-advice",
        lexicon.RECOMMENDED_FOLLOWUP,
        VALUE_SETS["follow-up"].words,
        _coded("follow-up", is_open=True),
    ),
    Profile(
        "breast-ultrasound-study",
        "ImagingStudy",
        Words("乳腺超声影像检查", "Breast ultrasound study"),
        (
            Row("identifier", Words("Study Instance UID", "Study Instance UID"), 1),
            Row("modality", Words("超声", "Ultrasound"), 1),
            Row("subject", Words("患者", "The patient"), targets=("Patient",)),
        ),
        ("study-completeness",),
    ),
    Profile(
        "ai-device",
        "Device",
        Words("判读算法", "The reading algorithm"),
        (
            Row("deviceName", Words("模型名称", "Name of the model"), 1),
            Row(
                "type",
                Words("人工智能", "Artificial intelligence"),
                1,
                pattern=_pattern(lexicon.ARTIFICIAL_INTELLIGENCE),
            ),
        ),
        code=lexicon.ARTIFICIAL_INTELLIGENCE,
        coded_in="type",
    ),
    Profile(
        "lesion-place",
        "BodyStructure",
        Words("病灶所在部位", "Where a lesion lies"),
        (
            Row("identifier", Words("追踪标识", "Tracking UID"), 1, "1"),
            Row("location", Words("侧别", "Side"), 1, value_set="breast-side"),
            Row("description", Words("文字描述", "In words"), 1),
        ),
        ("distance-from-nipple",),
    ),
    Profile(
        "report-document",
        "DocumentReference",
        Words("已签发报告的打印件", "Paper of a signed version of a report"),
        (
            Row("masterIdentifier", Words("SOP Instance UID", "SOP Instance UID"), 1),
            Row("subject", Words("患者", "The patient"), 1, targets=("Patient",)),
            Row("author", Words("签发医生", "Who has signed"), 1),
            Row("content.attachment.url", Words("PDF 地址", "Where the PDF is"), 1),
            Row("content.attachment.hash", Words("SHA-1", "SHA-1"), 1),
            Row("content.attachment.size", Words("字节数", "Bytes"), 1),
        ),
    ),
    Profile(
        "report-provenance",
        "Provenance",
        Words("报告版本的来源", "Who made which version of a report, and why"),
        (
            Row("agent.type", Words("角色", "Their part in it"), 1),
            Row(
                "agent.who",
                Words("算法或医生", "The algorithm or the doctor"),
                targets=("Device", "Practitioner"),
            ),
        ),
    ),
    *AROUND,
    Profile(
        "masked-report",
        "DiagnosticReport",
        Words("去标识报告（患者手机）", "Masked report for the patient's phone"),
        (
            Row("meta.security", Words("已去标识", "It is redacted"), 1),
            Row("identifier", Words("无", "None"), max="0"),
            Row(
                "code", Words("检查", "The examination"), value_set="breast-ultrasound"
            ),
            Row("subject", Words("代号", "Her handle"), 1),
            Row("subject.reference", Words("无", "None"), max="0"),
            Row("subject.identifier", Words("代号", "Her handle"), 1),
            Row("result", Words("无", "None"), max="0"),
            Row("imagingStudy", Words("无", "None"), max="0"),
            Row("presentedForm", Words("无", "None"), max="0"),
            Row("conclusion", Words("无", "None"), max="0"),
        ),
        _OF_MASKED,
    ),
)
BY_URL: Mapping[str, Profile] = {profile.url: profile for profile in PROFILES}


def profile_named(canonical: str) -> Profile | None:
    """Return the profile of ours that a canonical names, of whatever version.

    A release has one version of each.
    """
    return BY_URL.get(canonical.partition("|")[0])


def profile_of(resource: Json) -> Profile | None:
    """Return the profile of a resource that the node writes; None when it has none."""
    kind = resource.get("resourceType")
    for profile in _by_type().get(str(kind), ()):
        told = resource.get(profile.coded_in)
        if profile.code is None or concepts.has_code(told, profile.code):
            return profile
    return None


@cache
def _by_type() -> Mapping[str, tuple[Profile, ...]]:
    found: dict[str, tuple[Profile, ...]] = {}
    for profile in PROFILES:
        if profile.url != concepts.MASKED_REPORT:
            found[profile.type] = (*found.get(profile.type, ()), profile)
    return found


def with_profile(resource: Json) -> Json:
    """Return a resource that the node writes with its profile in meta.profile.

    Others that it names stay; another of ours does not: what it was, it is no more.
    What another system may have sent says for itself what it is: with a meta it comes
    from the store. A Patient without a medical record number claims nothing.
    """
    profile = profile_of(resource)
    if profile is None:
        return resource
    if profile.sent and ("meta" in resource or not _keeps(resource, profile)):
        return resource
    meta = resource.get("meta", {})
    others = [url for url in as_list(meta.get("profile")) if url not in BY_URL]
    return {**resource, "meta": {**meta, "profile": [profile.url, *others]}}


def _keeps(resource: Json, profile: Profile) -> bool:
    return not any(departures(resource, profile, profile.type, whole=True))


# --- holding a resource against one ---------------------------------------------------


def departures(
    resource: Json, profile: Profile, where: str, *, whole: bool
) -> Iterator[Issue]:
    """Yield where a resource is not as the profile has it; `where` is its FHIRPath.

    Unless `whole`, what is missing is no fault: in an edit the node puts back what
    is its own.
    """
    for demand in profile.demands:
        if not demand.holds(resource):
            told = f"{profile.id}: {demand.words.en}"
            yield Issue("invariant", told, f"{where}.{demand.element}")
    for row in profile.rows:
        parent, _, name = row.path.rpartition(".")
        for holder, path in _holders(resource, parent, where):
            for issue in _row(holder, name, row, path, whole=whole):
                told = f"{profile.id}: {issue.message}"
                yield Issue(issue.code, told, issue.expression)


def _holders(element: Json, path: str, where: str) -> Iterator[tuple[Json, str]]:
    """Yield every element at `path` below another, with its FHIRPath."""
    if not path:
        yield element, where
        return
    name, _, rest = path.partition(".")
    value = element.get(name)
    for index, one in enumerate(as_list(value)):
        at = (
            f"{where}.{name}[{index}]" if isinstance(value, list) else f"{where}.{name}"
        )
        if isinstance(one, dict):
            yield from _holders(one, rest, at)


def _row(
    holder: Json, name: str, row: Row, path: str, *, whole: bool
) -> Iterator[Issue]:
    bare = name.removesuffix("[x]")
    key = value_of(holder, bare) if name != bare else bare
    value = holder.get(key) if key is not None else None
    count = len(as_list(value))
    if whole and count < (row.min or 0):
        yield Issue("required", f"{bare} is missing", f"{path}.{bare}")
    if row.max is not None and row.max != "*" and count > int(row.max):
        yield Issue("structure", f"at most {row.max} {bare}", f"{path}.{key}")
        return
    if key is None or value is None:
        return
    if row.types and key[len(bare) :] not in {t[0].upper() + t[1:] for t in row.types}:
        words = " or ".join(row.types)
        yield Issue("structure", f"{bare} is a {words}", f"{path}.{key}")
        return
    for index, one in enumerate(as_list(value)):
        at = f"{path}.{key}[{index}]" if isinstance(value, list) else f"{path}.{key}"
        yield from _value(one, row, at)


def _value(value: Any, row: Row, path: str) -> Iterator[Issue]:
    if row.targets:
        parts = reference_parts(value)
        if parts is not None and parts[0] not in row.targets:
            words = ", ".join(row.targets)
            yield Issue("value", f"must refer to {words}", f"{path}.reference")
    if row.pattern is not None and not _fits(value, row.pattern[1]):
        yield Issue("value", "not the value that the profile fixes", path)
    if row.value_set is not None and not row.open:
        value_set = VALUE_SETS[row.value_set]
        codings = as_list(value.get("coding"))
        if not any(value_set.holds(c.get("system"), c.get("code")) for c in codings):
            yield Issue("code-invalid", f"no coding is in {value_set.url}", path)


def _fits(value: Any, pattern: Any) -> bool:
    """Tell whether a value holds all that a pattern does (ElementDefinition)."""
    if isinstance(pattern, dict):
        return isinstance(value, dict) and all(
            _fits(value.get(key), part) for key, part in pattern.items()
        )
    if isinstance(pattern, list):
        held = as_list(value)
        return all(any(_fits(one, part) for one in held) for part in pattern)
    return bool(value == pattern)


def extension_faults(extension: Json, path: str) -> Iterator[Issue]:
    """Yield what is wrong with an extension of ours; of others we know nothing."""
    known = EXTENSIONS.get(str(extension.get("url")))
    if known is None:
        return
    if not known.parts:
        yield from _typed(extension, known.type, known.value_set, path)
        return
    parts = {part.name: part for part in known.parts}
    held = as_list(extension.get("extension"))
    for index, one in enumerate(held):
        at = f"{path}.extension[{index}]"
        part = parts.get(str(one.get("url")))
        if part is None:
            yield Issue("extension", f"{known.id} has no such part", f"{at}.url")
        else:
            yield from _typed(one, part.type, part.value_set, at)
    names = {one.get("url") for one in held}
    for part in known.parts:
        if part.min and part.name not in names:
            yield Issue("required", f"{known.id}: {part.name} is missing", path)


def _typed(
    extension: Json, type_name: str, value_set: str | None, path: str
) -> Iterator[Issue]:
    key = f"value{type_name[0].upper()}{type_name[1:]}"
    if key not in extension and f"_{key}" not in extension:
        yield Issue("structure", f"its value is a {type_name}", path)
    elif value_set is not None:
        code = extension.get(key)
        if code not in {c.code for c in VALUE_SETS[value_set].codes}:
            url = VALUE_SETS[value_set].url
            yield Issue("code-invalid", f"not in {url}", f"{path}.{key}")
