-- Which program's token a request showed: its id stands in the detail of its entry.
create function audit_client_of(detail text) returns text
language sql immutable parallel safe as $$
    select substring(detail from '"client": "([^"\\]*)"')
$$;
