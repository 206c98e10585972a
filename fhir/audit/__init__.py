"""The audit trail in FHIR: what an access is called, and AuditEvents made of it."""
