-- Every search by a date asks first for dates longer than a day. There are nearly none,
-- which the planner does not know: the short index is to answer alone, and be chosen.
drop index resource_dates_long;
create index resource_dates_long on resource_dates
    (resource_type, parameter, earliest, latest)
    where latest - earliest > interval '1 day';
create statistics resource_dates_length on (latest - earliest) from resource_dates;
analyze resource_dates;
