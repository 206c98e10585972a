-- Which program's token a request showed: its id stands in the detail of its entry.
create function audit_client_of(detail text) returns text
language sql immutable parallel safe as $$
    select substring(detail from '"client": "([^"\\]*)"')
$$;
-- What a program did for a person is found by the program too.
create index audit_entries_client on audit_entries (audit_client_of(detail), at, sequence)
    where detail like '%"client": "%';
