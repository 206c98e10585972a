-- Who works with the node, what they are signed in with, and the QR codes that
-- the desk has printed. Secrets are hashes: a copy of these rows opens nothing.

create table people (
    user_id uuid primary key,
    login text not null unique,
    display text not null,
    password_hash text not null,
    roles text[] not null,
    practitioner_id text,
    created_at timestamptz not null,
    disabled_at timestamptz
);
create unique index people_practitioner on people (practitioner_id)
    where practitioner_id is not null;

create table sessions (
    token_hash bytea primary key,
    user_id uuid not null references people,
    kind text not null check (kind in ('cookie', 'bearer')),
    created_at timestamptz not null,
    last_used_at timestamptz not null,
    expires_at timestamptz not null
);
create index sessions_of_user on sessions (user_id);
create index sessions_expiry on sessions (expires_at);

create table bindings (
    binding_id uuid primary key,
    patient_id uuid not null,
    token_hash bytea not null unique,
    check_code bytea,
    created_by uuid not null references people,
    created_at timestamptz not null,
    expires_at timestamptz not null,
    offered_at timestamptz
);
create index bindings_expiry on bindings (expires_at);
