-- The relay's own database. Whatever could name a person is sealed (bytea) under
-- the relay's key; openids are found by a keyed hash.

create table accounts (
    account_id uuid primary key,
    openid_mac bytea not null unique,
    openid bytea not null,
    created_at timestamptz not null
);

create table sessions (
    token_hash bytea primary key,
    account_id uuid not null references accounts on delete cascade,
    used_at timestamptz not null
);

-- What the desk printed as a QR code. The code itself is never here.
create table binding_offers (
    binding_id text primary key,
    token_hash bytea not null unique,
    check_mac bytea,
    patient_handle text not null,
    display bytea not null,
    expires timestamptz not null,
    used_at timestamptz
);

create table bindings (
    account_id uuid not null references accounts on delete cascade,
    patient_handle text not null,
    display bytea not null,
    bound_at timestamptz not null,
    primary key (account_id, patient_handle)
);
create index bindings_of_patient on bindings (patient_handle);

-- Keyed by the openid's hash, so that removing an account forgives nothing.
create table bind_failures (
    openid_mac bytea not null,
    patient_handle text,
    failed_at timestamptz not null
);
create index bind_failures_of_openid on bind_failures (openid_mac, failed_at);
create index bind_failures_of_patient on bind_failures (patient_handle, failed_at);

create table hook_events (
    subscription text not null,
    event_number bigint not null,
    received_at timestamptz not null,
    primary key (subscription, event_number)
);

create table reports (
    handle text primary key,
    patient_handle text not null,
    version integer not null,
    state text not null check (state in ('ready', 'released', 'withdrawn')),
    content bytea not null,
    subscription text not null,
    event_number bigint not null,
    first_received_at timestamptz not null,
    changed_at timestamptz not null
);
create index reports_of_patient on reports (patient_handle);

create table report_reads (
    account_id uuid not null references accounts on delete cascade,
    handle text not null references reports on delete cascade,
    version integer not null,
    read_at timestamptz not null,
    primary key (account_id, handle)
);

-- One-time subscriptions as far as the phone told us: each accept buys one message.
create table quotas (
    account_id uuid not null references accounts on delete cascade,
    template_id text not null,
    remaining integer not null check (remaining >= 0),
    changed_at timestamptz not null,
    primary key (account_id, template_id)
);

create sequence push_changes;

-- pending, sending, parked: still to come. sent, refused, no_quota, unconfirmed,
-- dead, superseded, cancelled: over. `ambiguous`: an attempt ended without an
-- answer, so that WeChat may have delivered it.
create table pushes (
    push_id uuid primary key,
    account_id uuid not null references accounts on delete cascade,
    handle text not null references reports on delete cascade,
    version integer not null,
    state text not null check (state in (
        'pending', 'sending', 'parked', 'sent', 'refused', 'no_quota',
        'unconfirmed', 'dead', 'superseded', 'cancelled')),
    attempts integer not null default 0,
    ambiguous boolean not null default false,
    last_of_quota boolean not null default false,
    errcode integer,
    not_before timestamptz not null,
    lease_until timestamptz,
    created_at timestamptz not null,
    changed bigint not null default nextval('push_changes'),
    changed_at timestamptz not null,
    unique (account_id, handle, version)
);
create index pushes_due on pushes (not_before) where state in ('pending', 'parked');
create index pushes_changed on pushes (changed);

create table access_tokens (
    app_id text primary key,
    token bytea not null,
    expires timestamptz not null
);
