-- Searches at a million reports: what is asked of one resource is answered by the index.

-- A code is mostly asked for without its system, and then of a certain resource.
drop index resource_tokens_value;
create index resource_tokens_value
    on resource_tokens (resource_type, parameter, value, resource_id, system);

-- A code of one report in a thousand is to be known as rare, and not as unheard of.
alter statistics resource_tokens_together set statistics 1000;
