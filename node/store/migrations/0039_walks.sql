-- Searches that cost the same at a million reports as at a thousand: what a resource is
-- sorted by stands in the indexes that find it, so that a page of what nearly all have,
-- or of what one in a hundred has, is a walk of a few rows along an index.

create table tokens_walked as
    select t.resource_type, t.resource_id, t.parameter, t.system, t.value,
           r.sort_date, r.last_updated
    from resource_tokens t join resources r using (resource_type, resource_id);
drop table resource_tokens;
alter table tokens_walked rename to resource_tokens;
alter table resource_tokens
    alter column resource_type set not null,
    alter column resource_id set not null,
    alter column parameter set not null,
    alter column system set not null,
    alter column value set not null,
    alter column sort_date set not null,
    alter column last_updated set not null;
create index resource_tokens_happened on resource_tokens
    (resource_type, parameter, value, sort_date, resource_id, last_updated, system);
create index resource_tokens_updated on resource_tokens
    (resource_type, parameter, value, last_updated, resource_id, sort_date, system);
-- What is asked of one resource is answered by the index alone.
create index resource_tokens_of on resource_tokens
    (resource_type, resource_id, parameter, value, system);
create statistics resource_tokens_together (mcv, ndistinct)
    on resource_type, parameter, value, system from resource_tokens;
alter statistics resource_tokens_together set statistics 1000;

create table references_walked as
    select x.resource_type, x.resource_id, x.parameter, x.target_type, x.target_id,
           r.sort_date, r.last_updated
    from resource_references x join resources r using (resource_type, resource_id);
drop table resource_references;
alter table references_walked rename to resource_references;
alter table resource_references
    alter column resource_type set not null,
    alter column resource_id set not null,
    alter column parameter set not null,
    alter column target_type set not null,
    alter column target_id set not null,
    alter column sort_date set not null,
    alter column last_updated set not null;
create index resource_references_target on resource_references
    (target_id, resource_type, parameter, target_type, sort_date, resource_id,
     last_updated);
create index resource_references_of on resource_references
    (resource_type, resource_id, parameter, target_type, target_id);
create statistics resource_references_together (ndistinct)
    on resource_type, parameter, target_id from resource_references;

create table dates_walked as
    select d.resource_type, d.resource_id, d.parameter, d.earliest, d.latest,
           r.sort_date, r.last_updated
    from resource_dates d join resources r using (resource_type, resource_id);
drop table resource_dates;
alter table dates_walked rename to resource_dates;
alter table resource_dates
    alter column resource_type set not null,
    alter column resource_id set not null,
    alter column parameter set not null,
    alter column earliest set not null,
    alter column latest set not null,
    alter column sort_date set not null,
    alter column last_updated set not null;
create index resource_dates_value on resource_dates
    (resource_type, parameter, earliest, latest, resource_id, sort_date, last_updated);
create index resource_dates_of on resource_dates
    (resource_type, resource_id, parameter, earliest, latest);
create index resource_dates_long on resource_dates (resource_type, parameter, earliest)
    where latest - earliest > interval '1 day';

drop index resources_happened;
create index resources_happened on resources (resource_type, sort_date, resource_id)
    include (last_updated);
drop index resources_updated;
create index resources_updated on resources (resource_type, last_updated, resource_id)
    include (sort_date);

-- An index answers alone only what a vacuum has seen since it was written.
alter table resources set (autovacuum_vacuum_insert_scale_factor = 0.02);
alter table resource_tokens set (autovacuum_vacuum_insert_scale_factor = 0.02);
alter table resource_references set (autovacuum_vacuum_insert_scale_factor = 0.02);
alter table resource_dates set (autovacuum_vacuum_insert_scale_factor = 0.02);
analyze resource_tokens, resource_references, resource_dates, resources;
