-- What a modality says of the end of a study: its performed procedure steps, the lists of
-- its storage commitment requests, transfers that broke off. UIDs and titles stand open,
-- whatever names a patient is sealed or a blind index.

alter table studies drop constraint studies_status_check;
alter table studies add constraint studies_status_check
    check (status in ('receiving', 'closed', 'read', 'failed', 'discontinued'));
alter table studies
    add column incomplete boolean not null default false,
    add column evidence_detail jsonb,
    -- Something was said about a study that is no longer open: weigh it again.
    add column reconsider boolean not null default false,
    -- How many images the newest version of the report takes into account.
    add column report_images integer;
create index studies_to_reconsider on studies (study_instance_uid) where reconsider;

-- `overlapped`: another association of the same study broke off while this one was open,
-- so its own orderly release says nothing about what the other one still had to send.
alter table open_associations
    add column calling_ae text,
    add column overlapped boolean not null default false;

-- A transfer that was aborted or lost, until the same sender comes back and releases.
create table broken_transfers (
    study_instance_uid text not null references studies,
    calling_ae text not null,
    how text not null check (how in ('aborted', 'lost')),
    at timestamptz not null,
    primary key (study_instance_uid, calling_ae)
);

-- An instance that a modality named as sent: one list for each `reference` (the
-- Transaction UID of an N-ACTION).
create table announced_instances (
    calling_ae text not null,
    reference text not null,
    sop_instance_uid text not null,
    source text not null,
    at timestamptz not null,
    primary key (reference, calling_ae, sop_instance_uid)
);
create index announced_instances_by_uid on announced_instances (sop_instance_uid);

create table performed_steps (
    sop_instance_uid text primary key,
    patient_id uuid not null references patients,
    calling_ae text not null,
    status text not null check (status in ('IN PROGRESS', 'COMPLETED', 'DISCONTINUED')),
    created_at timestamptz not null,
    changed_at timestamptz not null,
    images text[] not null default '{}',   -- of the kinds that we store
    not_taken integer not null default 0,  -- of other kinds: nobody waits for them
    body bytea not null                    -- sealed DICOM JSON
);

-- One row for each item of Scheduled Step Attributes Sequence (0040,0270).
create table performed_step_orders (
    sop_instance_uid text not null references performed_steps,
    number integer not null,
    study_instance_uid text not null,
    accession_blind bytea,
    primary key (sop_instance_uid, number)
);
create index performed_step_orders_of_study on performed_step_orders (study_instance_uid);
create index performed_step_orders_accession on performed_step_orders (accession_blind)
    where accession_blind is not null;

-- What the algorithm says of a study that grew after a physician had worked on its
-- report: kept beside her version, never in its place.
create table report_proposal (
    report_id uuid not null references report (id),
    generation integer not null,
    made_at timestamptz not null,
    body bytea not null,
    primary key (report_id, generation)
);
