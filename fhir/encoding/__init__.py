"""FHIR on the wire: JSON and XML, patches, and what goes wrong told as an outcome."""
