-- Signed reports as pages for browsers, one for each signed version: an object with a key
-- of its own, like an instance, that is sealed with the patient's.
create table report_page (
    report_id uuid not null references report,
    number    integer not null,
    blob_name text not null unique,
    blob_key  bytea not null,
    size      bigint not null,
    made_at   timestamptz not null,
    primary key (report_id, number)
);
