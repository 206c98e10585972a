-- What a program keeps beyond one token, the keys that sign what we say of a person,
-- and who a person is at the hospital's sign-on. Secrets are hashes or sealed.

alter table clients
    add column launch_url text,         -- where "open in" sends a browser
    add column last_used_at timestamptz;

-- JSON: which scopes that open no resource were granted, nonce, time of sign-in
alter table client_codes add column about text not null default '{}';

create table client_families (          -- refresh tokens that came from one sign-in
    family_id uuid primary key,
    client_id uuid not null references clients,
    user_id uuid not null references people,
    scopes text not null,
    patient_id text,
    about text not null,
    offline boolean not null,           -- goes on when she has signed out
    code_hash bytea not null,
    token_hash bytea not null unique,   -- the one that works
    begun_at timestamptz not null,
    used_at timestamptz not null,
    expires_at timestamptz not null
);
create index client_families_of_client on client_families (client_id);
create index client_families_of_user on client_families (user_id);
create index client_families_of_code on client_families (code_hash);
create index client_families_expiry on client_families (expires_at);

create table client_spent_refreshes (
    token_hash bytea primary key,
    family_id uuid not null references client_families on delete cascade
);
create index client_spent_refreshes_of_family on client_spent_refreshes (family_id);

alter table client_tokens
    add column family_id uuid references client_families on delete cascade;
create index client_tokens_of_family on client_tokens (family_id)
    where family_id is not null;
create index client_tokens_of_user on client_tokens (user_id) where user_id is not null;

create table signing_keys (
    kid text primary key,
    public_jwk text not null,
    sealed bytea not null,
    made_at timestamptz not null,
    shown_until timestamptz             -- null: the one that signs
);

alter table people
    add column sign_on_issuer text,
    add column sign_on_subject text;
create unique index people_sign_on on people (sign_on_issuer, sign_on_subject)
    where sign_on_subject is not null;

alter table sessions add column by_sign_on boolean not null default false;
