-- Dates that are longer than a day, a month say: a search looks for them before it
-- takes it that whatever reaches into a day began on the day before.
create index resource_dates_long on resource_dates (resource_type, parameter, earliest)
    where latest - earliest > interval '1 day';
