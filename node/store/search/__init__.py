"""Finding FHIR resources in the indexes.

`criteria` is what is asked; `pages`, `totals` and `related` answer it. Between them
`women` widens it to every row of a woman, `planning` looks up what the planner cannot
guess, and `predicates` makes SQL of it.
"""
