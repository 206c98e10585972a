-- Programs that people use: authorization codes, what a launch was about, and launches
-- of the review page by an EHR that have not come back yet. All of them live for minutes.

create table client_codes (
    code_hash bytea primary key,
    client_id uuid not null references clients,
    user_id uuid not null references people,
    redirect_uri text not null,
    challenge text not null,            -- PKCE, S256
    scopes text not null,
    context text not null,              -- JSON: patient, fhirContext
    expires_at timestamptz not null,
    used_at timestamptz
);
create index client_codes_expiry on client_codes (expires_at);

create table client_launches (
    launch_hash bytea primary key,
    user_id uuid not null references people,
    context text not null,
    expires_at timestamptz not null
);
create index client_launches_expiry on client_launches (expires_at);

create table ehr_launches (
    state_hash bytea primary key,
    iss text not null,
    sealed bytea not null,              -- PKCE verifier and nonce
    expires_at timestamptz not null
);
create index ehr_launches_expiry on ehr_launches (expires_at);
