-- What a program did for a person is found by the program too: its id stands in the detail
-- of each request that showed one of its tokens.
create function audit_client_of(detail text) returns text
language sql immutable parallel safe as $$
    select substring(detail from '"client": "([^"\\]*)"')
$$;
create index audit_entries_client on audit_entries (audit_client_of(detail), at, sequence)
    where detail like '%"client": "%';
