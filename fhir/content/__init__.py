"""What the node says in FHIR: reports, orders, people, and how they are read back."""
