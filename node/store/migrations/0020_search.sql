-- Searches that stay fast when there are a million reports.

-- By which rules a resource was indexed; the worker brings older ones forward.
alter table resources add column index_version smallint not null default 0;

-- How often a code, or a reference to somebody, occurs depends on what is asked by it.
create statistics resource_tokens_together (mcv, ndistinct)
    on resource_type, parameter, value from resource_tokens;
create statistics resource_references_together (ndistinct)
    on resource_type, parameter, target_id from resource_references;
