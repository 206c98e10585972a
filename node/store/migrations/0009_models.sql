-- Models that read: which the node knows, which one speaks, which one only listens.

-- A row stays for ever: a report names its model by `model_id`, the id of a Device.
create table model (
    model_id text primary key,
    name text not null,
    version text not null,
    weights_sha256 text not null,
    record_sha256 text not null,
    origin text not null check (origin in ('release', 'setting', 'added')),
    added_at timestamptz not null,
    added_by text not null
);

-- Every choice that was ever made; the newest row of a role counts. No model = nobody.
-- `follows_release`: the next release may bring another one. `undoes`: a step back.
create table model_choice (
    sequence bigint generated always as identity primary key,
    role text not null check (role in ('active', 'shadow')),
    model_id text references model,
    follows_release boolean not null default false,
    undoes boolean not null default false,
    at timestamptz not null,
    by text not null,
    reason text not null default '',
    check (model_id is not null or role = 'shadow')
);
create index model_choice_newest on model_choice (role, sequence desc);

create function models_wake() returns trigger language plpgsql as $$
begin
    perform pg_notify('models', new.role);
    return null;
end $$;
create trigger model_chosen after insert on model_choice
    for each row execute function models_wake();

-- What the reading process made of the newest choice of a role.
create table model_state (
    role text primary key check (role in ('active', 'shadow')),
    choice bigint not null,
    serving text references model,
    trouble text not null default '',
    at timestamptz not null
);

-- What a shadow said about a study: kept for comparison, shown nowhere.
create table shadow_reading (
    report_id uuid not null,
    generation integer not null,
    model_id text not null references model,
    patient_id uuid not null,
    study_instance_uid text not null,
    body bytea not null,
    read_at timestamptz not null,
    primary key (report_id, generation, model_id)
);
create index shadow_reading_of_model on shadow_reading (model_id, read_at);
