-- Keys, jobs and audit: what every other table leans on.

-- Domain keys wrap data keys; the root key, which is never here, wraps them.
create table domain_keys (
    key_id uuid primary key,
    domain text not null,
    root_key_id text not null,
    wrapped bytea not null,
    current boolean not null default true,
    created_at timestamptz not null default now()
);
create unique index domain_keys_current on domain_keys (domain) where current;

-- One key for each patient (domain 'patient') and one for each use of the node.
-- A shredded key keeps its row, so that "erased" differs from "never seen".
create table data_keys (
    key_id uuid primary key,
    domain text not null,
    subject uuid not null,
    domain_key_id uuid references domain_keys,
    wrapped bytea,
    created_at timestamptz not null default now(),
    shredded_at timestamptz,
    unique (domain, subject),
    check ((wrapped is null) = (shredded_at is not null)),
    check ((wrapped is null) = (domain_key_id is null))
);
create index data_keys_wrapped_by on data_keys (domain_key_id);

create table jobs (
    job_id uuid primary key,
    sequence bigint generated always as identity,
    kind text not null,
    state text not null check (state in ('ready', 'running', 'done', 'dead')),
    dedupe_key text,
    order_key text,
    patient_id uuid,
    payload bytea,
    attempts integer not null default 0,
    failures integer not null default 0,
    crashes integer not null default 0,
    not_before timestamptz not null,
    deferred_at timestamptz not null,
    worker text,
    lease_until timestamptz,
    finished_at timestamptz,
    error text
);
create index jobs_ready on jobs (not_before, sequence) where state = 'ready';
create index jobs_running on jobs (lease_until) where state = 'running';
create index jobs_finished on jobs (state, finished_at) where state in ('done', 'dead');
create index jobs_ordered on jobs (order_key, sequence)
    where order_key is not null and state in ('ready', 'running');
create unique index jobs_deduped on jobs (kind, dedupe_key)
    where dedupe_key is not null and state in ('ready', 'running');
-- At most one job of a group at a time, whatever two claimers saw.
create unique index jobs_one_of_a_group on jobs (order_key)
    where order_key is not null and state = 'running';

create function jobs_wake() returns trigger language plpgsql as $$
begin
    perform pg_notify('jobs', new.kind);
    return null;
end $$;
create trigger jobs_deferred after insert on jobs
    for each row execute function jobs_wake();
create trigger jobs_ready_again after update of state on jobs
    for each row when (new.state <> 'running') execute function jobs_wake();

create table audit_entries (
    sequence bigint primary key,
    at timestamptz not null,
    actor text not null,
    role text not null,
    action text not null,
    entity text not null,
    outcome text not null,
    detail text not null,
    previous_hash bytea not null,
    hash bytea not null unique
);
create index audit_entries_at on audit_entries (at);
create index audit_entries_entity on audit_entries (entity, sequence);

create function audit_is_append_only() returns trigger language plpgsql as $$
begin
    raise exception 'audit_entries is append-only' using errcode = '42501';
end $$;
create trigger audit_no_change before update or delete on audit_entries
    for each row execute function audit_is_append_only();
create trigger audit_no_truncate before truncate on audit_entries
    for each statement execute function audit_is_append_only();
