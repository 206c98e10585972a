"""The site in FHIR: hospital, department, the node itself, and where images are had.

Their ids are names, not numbers: they stay the same when the hospital changes how it
is called, and every reference to them is known without a look into the store.
"""

from dataclasses import dataclass

from fhir.content import concepts
from fhir.encoding.wire import Json
from node.domain.access import Role

HOSPITAL: Json = {"reference": "Organization/hospital"}
DEPARTMENT: Json = {"reference": "Organization/department"}
NODE: Json = {"reference": "Device/sononode"}
DICOM_WEB: Json = {"reference": "Endpoint/dicom-web"}

_TERMINOLOGY = "http://terminology.hl7.org/CodeSystem"
_ORGANIZATION_TYPE = f"{_TERMINOLOGY}/organization-type"
_STAFF_ROLE = f"{concepts.BASE}/CodeSystem/staff-role"
_SIGNERS = {
    Role.SENIOR_RADIOLOGIST: "高级诊断医师 / Senior radiologist",
    Role.RADIOLOGIST: "诊断医师 / Radiologist",
}


@dataclass(frozen=True)
class Site:
    """Where the node stands; `root_url` is the node's own address.

    `identifier` is the number that others know the hospital by (in China its unified
    social credit code), `identifier_system` whose number it is. `language` is the one
    in which reports are printed.
    """

    institution: str
    department: str
    root_url: str
    phone: str = ""
    language: str = "zh-CN"
    identifier_system: str = ""
    identifier: str = ""
    version: str = ""


def to_resources(site: Site) -> list[Json]:
    """Return what stands for the site: each is there once, whatever is reported."""
    return [_hospital(site), _department(site), _node(site), _dicom_web(site)]


def _hospital(site: Site) -> Json:
    hospital = _organization("hospital", site.institution, "prov", "医疗机构")
    if site.identifier:
        number = {"system": site.identifier_system, "value": site.identifier}
        hospital["identifier"] = [{k: v for k, v in number.items() if v}]
    return hospital


def _department(site: Site) -> Json:
    department = _organization("department", site.department, "dept", "医院科室")
    if site.phone:
        department["telecom"] = [
            {"system": "phone", "value": site.phone, "use": "work"}
        ]
    return department | {"partOf": HOSPITAL, "endpoint": [DICOM_WEB]}


def _organization(organization_id: str, name: str, code: str, text: str) -> Json:
    kind = {"coding": [{"system": _ORGANIZATION_TYPE, "code": code}], "text": text}
    return {
        "resourceType": "Organization",
        "id": organization_id,
        "active": True,
        "type": [kind],
        "name": name,
    }


def _node(site: Site) -> Json:
    """Return the node as a Device: the one that files what nobody did by hand."""
    node: Json = {
        "resourceType": "Device",
        "id": "sononode",
        "status": "active",
        "deviceName": [{"name": "sononode", "type": "user-friendly-name"}],
        "type": {"text": "影像集成节点 / Imaging integration node"},
        "owner": HOSPITAL,
    }
    if site.version:
        node["version"] = [{"type": {"text": "software"}, "value": site.version}]
    return node


def _dicom_web(site: Site) -> Json:
    """Return where whole studies are had (IHE IMR: payload DCM 113014, DICOM Study)."""
    return {
        "resourceType": "Endpoint",
        "id": "dicom-web",
        "status": "active",
        "connectionType": {
            "system": f"{_TERMINOLOGY}/endpoint-connection-type",
            "code": "dicom-wado-rs",
        },
        "name": "DICOMweb",
        "managingOrganization": HOSPITAL,
        "payloadType": [
            {
                "coding": [
                    {
                        "system": concepts.DCM,
                        "code": "113014",
                        "display": "DICOM Study",
                    }
                ]
            }
        ],
        "payloadMimeType": ["application/dicom", "application/dicom+json"],
        "address": f"{site.root_url}/dicom-web",
    }


def to_practitioner_role(
    practitioner_id: str, roles: frozenset[Role], *, active: bool = True
) -> Json:
    """Return what a person who signs is at the department, under her own id.

    A closed account, or one that may no longer sign, is no longer active there.
    """
    held = next((role for role in _SIGNERS if role in roles), None)
    role: Json = {
        "resourceType": "PractitionerRole",
        "id": practitioner_id,
        "active": active and held is not None,
        "practitioner": {"reference": f"Practitioner/{practitioner_id}"},
        "organization": DEPARTMENT,
    }
    codings = [{"system": f"{_TERMINOLOGY}/practitioner-role", "code": "doctor"}]
    if held is None:
        return role | {"code": [{"coding": codings}]}
    codings.append({"system": _STAFF_ROLE, "code": held.value})
    return role | {"code": [{"coding": codings, "text": _SIGNERS[held]}]}
