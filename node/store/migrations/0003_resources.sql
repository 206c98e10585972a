-- FHIR resources: bodies are sealed, indexes are blind where they could identify.

-- The newest version of each resource; its body is in resource_versions.
create table resources (
    resource_type text not null,
    resource_id text not null,
    version integer not null,
    last_updated timestamptz not null,
    patient_id uuid,
    sort_date timestamptz not null,   -- when it happened in the clinic; -infinity: unknown
    primary key (resource_type, resource_id)
);
create index resources_happened on resources (resource_type, sort_date, resource_id);
create index resources_updated on resources (resource_type, last_updated, resource_id);
create index resources_of_patient on resources (patient_id) where patient_id is not null;

create table resource_versions (
    resource_type text not null,
    resource_id text not null,
    version integer not null,
    last_updated timestamptz not null,
    patient_id uuid,
    method text not null check (method in ('POST', 'PUT')),
    body bytea not null,
    primary key (resource_type, resource_id, version)
);
-- Bodies are ciphertext: PostgreSQL would try to compress them in vain.
alter table resource_versions alter column body set storage external;

-- Indexes hold the newest version only. `value` is the code itself, or 16 bytes
-- of HMAC where the code could name somebody (MRN, accession number, name).
create table resource_tokens (
    resource_type text not null,
    resource_id text not null,
    parameter text not null,
    system text not null,
    value bytea not null
);
create index resource_tokens_value
    on resource_tokens (resource_type, parameter, value, system, resource_id);
create index resource_tokens_of on resource_tokens (resource_type, resource_id);

create table resource_references (
    resource_type text not null,
    resource_id text not null,
    parameter text not null,
    target_type text not null,
    target_id text not null
);
create index resource_references_target
    on resource_references (target_id, resource_type, parameter, target_type, resource_id);
create index resource_references_of on resource_references (resource_type, resource_id);

-- Half-open interval that the date covers in the precision it was given.
create table resource_dates (
    resource_type text not null,
    resource_id text not null,
    parameter text not null,
    earliest timestamptz not null,
    latest timestamptz not null
);
create index resource_dates_value
    on resource_dates (resource_type, parameter, earliest, latest, resource_id);
create index resource_dates_of on resource_dates (resource_type, resource_id);

-- Who is told of signed reports. `header` lines may hold credentials: sealed.
create table subscriptions (
    subscription_id uuid primary key,
    topic text not null,
    status text not null check (status in ('requested', 'active', 'error', 'off')),
    endpoint text not null,
    headers bytea not null,
    content text not null check (content in ('empty', 'id-only', 'full-resource')),
    timeout_s integer not null,
    heartbeat_period_s integer,
    events_count bigint not null default 0,
    failing_since timestamptz,
    failures integer not null default 0,
    next_attempt_at timestamptz,
    next_heartbeat_at timestamptz,
    error text
);
create index subscriptions_topic on subscriptions (topic);

-- One row per event and subscriber, numbered without a gap in the transaction
-- that signed the report; the body is what was true then, a redelivery repeats it.
create table subscription_events (
    subscription_id uuid not null references subscriptions,
    number bigint not null,
    at timestamptz not null,
    patient_id uuid not null,
    focus text not null,
    body bytea not null,
    delivered_at timestamptz,
    primary key (subscription_id, number)
);
create index subscription_events_waiting
    on subscription_events (subscription_id, number) where delivered_at is null;
