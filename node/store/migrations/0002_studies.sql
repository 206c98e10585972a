-- Patients, studies, instances, and which associations still feed a study.
-- Whatever names a patient is sealed; what is searched is a blind index or not identifying.

create table patients (
    patient_id uuid primary key,
    identity_blind bytea not null unique,
    name_blinds bytea[] not null,
    body bytea not null,
    created_at timestamptz not null,
    updated_at timestamptz not null
);
create index patients_name on patients using gin (name_blinds);

create table studies (
    study_instance_uid text primary key,
    patient_id uuid not null references patients,
    status text not null check (status in ('receiving', 'closed', 'read', 'failed')),
    study_date date,
    accession_blind bytea,
    body bytea not null,
    opened_at timestamptz not null,
    last_instance_at timestamptz not null,
    ended_at timestamptz,   -- when the last association that fed it ended
    ended_how text check (ended_how in ('released', 'aborted', 'lost')),
    closed_at timestamptz,
    evidence text,
    generation integer not null default 0
);
create index studies_of_patient on studies (patient_id, study_date);
create index studies_accession on studies (accession_blind) where accession_blind is not null;
create index studies_receiving on studies (last_instance_at) where status = 'receiving';
create index studies_by_date on studies (study_date desc, study_instance_uid);

create table instances (
    sop_instance_uid text primary key,
    study_instance_uid text not null references studies,
    series_instance_uid text not null,
    sequence bigint generated always as identity,
    sop_class_uid text not null,
    transfer_syntax_uid text not null,
    modality text not null,
    number_of_frames integer not null,
    origin text not null,
    sha256 bytea not null,          -- of the encoded data set, file meta left out
    size bigint not null,           -- of the Part 10 file
    blob_name text not null unique,
    blob_key bytea not null,        -- sealed
    metadata bytea not null,        -- sealed DICOM JSON
    frame_table bytea not null,     -- pairs of unsigned 64 bit: offset, length
    calling_ae text not null,
    association text not null,
    received_at timestamptz not null
);
create index instances_of_study on instances (study_instance_uid, sequence);
create index instances_of_series on instances (series_instance_uid, sequence);

-- A row lives from the first instance of a study on an association until that association
-- ends. `process` is the stable name of the receiving process, which clears its own
-- leftovers when it starts again after a crash.
create table open_associations (
    association text not null,
    study_instance_uid text not null references studies,
    process text not null,
    touched_at timestamptz not null,
    primary key (association, study_instance_uid)
);
create index open_associations_of_study on open_associations (study_instance_uid);
create index open_associations_of_process on open_associations (process);
