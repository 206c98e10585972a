-- Programs of other systems (SMART clients), their tokens, and what makes an assertion
-- or a code work once, whichever process sees it. Secrets are hashes.

create table clients (
    client_id uuid primary key,
    name text not null,
    roles text[] not null,              -- of the program itself; empty: it acts for people only
    scopes text not null,               -- the most that it can be granted
    jwks text,                          -- its public keys, or where they are fetched
    jwks_uri text,
    redirect_uris text[] not null,
    created_at timestamptz not null,
    disabled_at timestamptz,
    check (jwks is null or jwks_uri is null)
);

create table client_assertions (
    client_id uuid not null references clients,
    jti_hash bytea not null,
    expires_at timestamptz not null,
    primary key (client_id, jti_hash)
);
create index client_assertions_expiry on client_assertions (expires_at);

create table client_tokens (
    token_hash bytea primary key,
    client_id uuid not null references clients,
    user_id uuid references people,     -- for whom it acts; null: for itself
    scopes text not null,
    patient_id text,
    code_hash bytea,                    -- the code that it came from
    issued_at timestamptz not null,
    expires_at timestamptz not null
);
create index client_tokens_of_client on client_tokens (client_id);
create index client_tokens_of_code on client_tokens (code_hash) where code_hash is not null;
create index client_tokens_expiry on client_tokens (expires_at);
