"""Our profiles of who and what stands around a report: patient, order, staff, site.

What a row does not restrict is only promised to be understood (must support): EHRs
send what their own orders have.
"""

from fhir.conformance.asking import Demand, Profile, Row
from fhir.conformance.terminology import Words
from fhir.content import concepts
from fhir.content.reading import medical_record_number
from fhir.encoding.wire import Json, as_list

_HER = Row("subject", Words("患者", "The patient"), 1, targets=("Patient",))
_CODE_SYSTEM = "http://terminology.hl7.org/CodeSystem"
_SCOPE = {"coding": [{"system": f"{_CODE_SYSTEM}/consentscope", "code": "research"}]}
_WADO = {"system": f"{_CODE_SYSTEM}/endpoint-connection-type", "code": "dicom-wado-rs"}
_IN_HOSPITAL = ("Organization",)


def _one_coding(key: str, words: Words, path: str, wanted: tuple[str, str]) -> Demand:
    """Return the demand that one of the codings at `path` is the one that is wanted.

    A pattern of an element that repeats would say it too, but not every validator
    reads it as one for each repetition (FHIR R4 ElementDefinition.pattern[x]).
    """
    element, _, name = path.partition(".")

    def holds(resource: Json) -> bool:
        return any(
            (coding.get("system"), coding.get("code")) == wanted
            for one in as_list(resource.get(element))
            for coding in as_list(one.get(name))
        )

    system, code = wanted
    expression = f"{path}.where(system = '{system}' and code = '{code}').exists()"
    return Demand(key, words, element, holds, expression)


AROUND: tuple[Profile, ...] = (
    Profile(
        "known-patient",
        "Patient",
        Words("有病案号的患者", "Patient with a medical record number"),
        (
            Row("identifier", Words("病案号、身份证号", "Numbers she is known by"), 1),
            Row("active", Words("是否仍在使用", "Whether the row is in use")),
            Row("name", Words("姓名", "Names")),
            Row("telecom", Words("电话", "Phone")),
            Row("gender", Words("性别", "Sex")),
            Row("birthDate", Words("出生日期", "Date of birth")),
            Row(
                "managingOrganization",
                Words("所属医院", "Whose patient she is"),
                targets=_IN_HOSPITAL,
            ),
            Row("link", Words("合并与关联", "Merged and related rows")),
        ),
        demands=(
            Demand(
                "pat-mrn",
                Words("须有类型为 MR 的标识符", "an identifier of type MR is needed"),
                "identifier",
                lambda patient: medical_record_number(patient) is not None,
                "identifier.where(value.exists() and type.coding.where(system ="
                f" '{concepts.IDENTIFIER_TYPE}' and code = 'MR').exists()).exists()",
            ),
        ),
        sent=True,
    ),
    Profile(
        "staff-member",
        "Practitioner",
        Words("申请或签发的人员", "Who asks for or signs reports"),
        (
            Row("identifier", Words("工号", "Staff number")),
            Row("active", Words("是否在职", "Whether still here")),
            Row("name", Words("姓名", "Names"), 1),
        ),
        sent=True,
    ),
    Profile(
        "signing-role",
        "PractitionerRole",
        Words("签发医生的岗位", "What a person who signs is at the department"),
        (
            Row("active", Words("是否可签发", "Whether she still signs"), 1),
            Row(
                "practitioner",
                Words("医生", "The doctor"),
                1,
                targets=("Practitioner",),
            ),
            Row(
                "organization", Words("科室", "The department"), 1, targets=_IN_HOSPITAL
            ),
            Row("code", Words("岗位", "What she is"), 1),
        ),
    ),
    Profile(
        "breast-ultrasound-order",
        "ServiceRequest",
        Words("乳腺超声申请", "Order of a breast ultrasound"),
        (
            Row(
                "identifier",
                Words(
                    "检查号 ACSN、申请单号 PLAC、执行单号 FILL、Study Instance UID",
                    "Numbers of type ACSN, PLAC and FILL, and a Study Instance UID",
                ),
            ),
            Row(
                "replaces",
                Words("所替代的申请", "Orders that it takes off the worklist"),
                targets=("ServiceRequest",),
            ),
            Row("status", Words("active 才进工作列表", "Due while it is active")),
            Row("intent", Words("order 及其下级", "An order, not a plan")),
            Row("priority", Words("急缓", "How urgent")),
            Row("doNotPerform", Words("不执行", "Not to be done")),
            Row("code", Words("检查", "The examination")),
            _HER,
            Row("occurrence[x]", Words("预约时间", "When it is due")),
            Row("authoredOn", Words("开单时间", "When it was written")),
            Row("requester", Words("申请医生", "Who asks for it")),
            Row("performer", Words("执行者", "Who does it")),
            Row("locationCode", Words("设备或诊室", "Machine or room")),
            Row("reasonCode", Words("理由", "Why")),
            Row("bodySite", Words("部位", "Where on the body")),
        ),
        sent=True,
    ),
    Profile(
        "site-organization",
        "Organization",
        Words("医院或科室", "The hospital or its department"),
        (
            Row("identifier", Words("机构代码", "Number of the institution")),
            Row("active", Words("在用", "In use"), 1),
            Row("type", Words("医院或科室", "Hospital or department"), 1),
            Row("name", Words("名称", "Name"), 1),
            Row("telecom", Words("电话", "Phone")),
            Row("partOf", Words("所属医院", "The hospital"), targets=_IN_HOSPITAL),
            Row("endpoint", Words("取图地址", "Where images are had")),
        ),
    ),
    Profile(
        "study-endpoint",
        "Endpoint",
        Words("取图地址", "Where whole studies are had"),
        (
            Row(
                "connectionType", Words("WADO-RS", "WADO-RS"), pattern=("Coding", _WADO)
            ),
            Row(
                "managingOrganization",
                Words("医院", "The hospital"),
                1,
                targets=_IN_HOSPITAL,
            ),
            Row("payloadType", Words("DICOM 检查", "DICOM studies"), 1),
            Row("payloadMimeType", Words("格式", "Forms"), 1),
            Row("address", Words("DICOMweb 根地址", "Root of DICOMweb")),
        ),
        demands=(
            _one_coding(
                "end-study",
                Words("内容为整个 DICOM 检查", "whole DICOM studies are had there"),
                "payloadType.coding",
                (concepts.DCM, "113014"),
            ),
        ),
    ),
    Profile(
        "research-consent",
        "Consent",
        Words("科研使用同意", "Consent to research"),
        (
            Row(
                "scope", Words("科研", "Research"), pattern=("CodeableConcept", _SCOPE)
            ),
            Row("patient", Words("患者", "The patient"), 1, targets=("Patient",)),
            Row("dateTime", Words("同意时间", "When she agreed"), 1),
            Row("organization", Words("医院", "Who holds it"), 1, targets=_IN_HOSPITAL),
            Row("policyRule", Words("同意内容", "What she agreed to"), 1),
            Row("provision", Words("条款", "The terms"), 1),
            Row(
                "provision.type",
                Words("许可", "It permits"),
                1,
                pattern=("Code", "permit"),
            ),
            Row(
                "provision.period",
                Words("有效期；撤回即有止日", "From when; its end is a withdrawal"),
                1,
            ),
            Row("provision.purpose", Words("用途", "What for"), 1),
        ),
        demands=(
            _one_coding(
                "con-research",
                Words("用途为科研", "it is for research"),
                "provision.purpose",
                (f"{_CODE_SYSTEM}/v3-ActReason", "HRESCH"),
            ),
        ),
    ),
    Profile(
        "patient-was-told",
        "Communication",
        Words("已当面或电话告知患者", "The patient was told of her report"),
        (
            Row(
                "status", Words("已告知", "It was done"), pattern=("Code", "completed")
            ),
            Row("medium", Words("phone 或 in-person", "phone or in-person"), 1),
            _HER,
            Row("about", Words("所告知的报告", "The report"), 1),
            Row("sent", Words("告知时间", "When"), 1),
            Row(
                "sender",
                Words("告知的医生", "The doctor who told"),
                1,
                targets=("Practitioner",),
            ),
        ),
    ),
    Profile(
        "unfinished-work",
        "Task",
        Words("未完成的工作", "Work that failed or was broken off"),
        (
            Row("status", Words("requested 即重试", "Set to requested, it is retried")),
            Row("statusReason", Words("原因", "Why it failed")),
            Row("intent", Words("指令", "An order"), pattern=("Code", "order")),
            Row("code", Words("工作种类", "What was to be done"), 1),
            Row("focus", Words("检查", "The study"), targets=("ImagingStudy",)),
            Row("lastModified", Words("失败时间", "When it failed"), 1),
        ),
    ),
    Profile(
        "report-paper",
        "Binary",
        Words("报告 PDF", "The PDF of a signed version"),
        (
            Row(
                "contentType", Words("PDF", "PDF"), pattern=("Code", "application/pdf")
            ),
            Row(
                "securityContext",
                Words("报告", "Its report"),
                1,
                targets=("DiagnosticReport",),
            ),
            Row("data", Words("内容", "The paper"), 1),
        ),
    ),
    Profile(
        "node-device",
        "Device",
        Words("影像集成节点", "The node itself"),
        (
            Row("deviceName", Words("名称", "Its name"), 1),
            Row("type", Words("影像集成节点", "What it is"), 1),
            Row("owner", Words("医院", "The hospital"), 1, targets=_IN_HOSPITAL),
        ),
    ),
)
