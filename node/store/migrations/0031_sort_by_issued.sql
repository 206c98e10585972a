-- Reports may be sorted by when they were issued: every one has a place from now on,
-- also those that have no such date yet.
insert into resource_dates (resource_type, resource_id, parameter, earliest, latest)
select r.resource_type, r.resource_id, 'issued:sort', coalesce(d.earliest, d0.never),
       coalesce(d.earliest, d0.never)
from resources r
cross join (select timestamptz '1000-01-01 00:00:00+00' as never) as d0
left join resource_dates d
    on d.resource_type = r.resource_type and d.resource_id = r.resource_id
    and d.parameter = 'issued'
where r.resource_type = 'DiagnosticReport';
