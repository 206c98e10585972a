-- Bulk exports (FHIR Bulk Data Access): what was asked for, how far it is, its files.
-- Each has a data key of its own (domain 'node', subject export_id), which goes with it.
create table exports (
    export_id uuid primary key,
    client_id uuid not null references clients,
    state text not null check (state in ('running', 'complete', 'failed', 'removed')),
    asked bytea not null,             -- sealed: filters may name a patient
    transaction_time timestamptz not null,
    -- By the clock of the database: what began before this may still be committed.
    settles_at timestamptz not null default clock_timestamp(),
    place integer not null default 0, -- how many of the types asked for are done
    after_id text not null default '',-- the last resource written of the one under way
    files integer not null default 0,
    resources bigint not null default 0,
    created_at timestamptz not null,
    ended_at timestamptz,
    expires_at timestamptz,
    next_poll_at timestamptz
);
create index exports_of_client on exports (client_id, state);

create table export_files (
    export_id uuid not null references exports on delete cascade,
    number integer not null,
    output text not null check (output in ('output', 'deleted', 'error')),
    resource_type text not null,
    resources integer not null,
    size bigint not null,             -- of the lines, before they are packed
    packed_size bigint not null,
    blob_name text not null unique,
    patients uuid[] not null,         -- whose data is in it
    primary key (export_id, number)
);
