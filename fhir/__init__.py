"""The FHIR side of the node; shares its name with the library fhir.resources."""

from pkgutil import extend_path

__path__ = extend_path(__path__, __name__)
