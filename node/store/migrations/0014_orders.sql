-- Orders as scheduled procedure steps (PS3.4 K). What names the patient or her case is
-- in the body, sealed with her key; the blinds find it. Date and time are the site's.
create table orders (
    order_id uuid primary key,
    sequence bigint generated always as identity,
    patient_id uuid not null references patients (patient_id),
    status text not null check (status in
        ('SCHEDULED', 'IN PROGRESS', 'COMPLETED', 'DISCONTINUED', 'CANCELLED')),
    source text not null check (source in ('fhir', 'rest')),
    source_id text not null default '',
    key_blind bytea not null unique,
    study_instance_uid text not null,
    modality text not null,
    station_titles text[] not null,
    scheduled_on date not null,
    scheduled_time time,
    patient_blind bytea not null,
    accession_blind bytea,
    procedure_blind bytea not null,
    step_blind bytea not null,
    body bytea not null,
    created_at timestamptz not null,
    updated_at timestamptz not null
);
create index orders_open on orders (scheduled_on, scheduled_time)
    where status in ('SCHEDULED', 'IN PROGRESS');
create index orders_scheduled on orders (scheduled_on, sequence);
create index orders_patient on orders (patient_id);
create index orders_patient_blind on orders (patient_blind);
create index orders_accession on orders (accession_blind) where accession_blind is not null;
create index orders_procedure on orders (procedure_blind);
create index orders_step on orders (step_blind);
create index orders_study on orders (study_instance_uid);
create unique index orders_of_source on orders (source, source_id) where source_id <> '';

-- Which orders a study answers, and which it names although they are another patient's.
create table study_orders (
    study_instance_uid text not null references studies (study_instance_uid),
    order_id uuid not null references orders (order_id),
    agrees boolean not null,
    named_by text not null check (named_by in ('study uid', 'request', 'accession')),
    at timestamptz not null,
    primary key (study_instance_uid, order_id)
);
create index study_orders_order on study_orders (order_id);
create index study_orders_conflicts on study_orders (at) where not agrees;
