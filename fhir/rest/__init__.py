"""HTTP below /fhir: reads, writes and transactions."""
