-- Two rows of one woman: `merged_into` is the row that stands for both. Nothing moves: her
-- studies, reports and orders keep their row and its key.
alter table patients add column merged_into uuid references patients
    check (merged_into <> patient_id);
create index patients_merged_into on patients (merged_into) where merged_into is not null;

-- Which rows are one woman, each beside each other one, through all links: kept by the
-- transaction that merges, so that a search asks one index. Text, as FHIR names them.
create table patient_rows (
    patient_id text not null,
    other      text not null,
    primary key (patient_id, other)
);

-- What a person, or the EHR, said of two rows. Rows are never changed: the newest of a
-- pair counts. The reason is sealed with the keys of both, and goes with either.
create table patient_decisions (
    sequence bigint generated always as identity primary key,
    lost     uuid not null references patients,
    kept     uuid not null references patients,
    verdict  text not null check (verdict in ('same', 'apart', 'different')),
    at       timestamptz not null,
    by       text not null,
    reason   bytea not null,
    check (lost <> kept)
);
create index patient_decisions_of_pair
    on patient_decisions (least(lost, kept), greatest(lost, kept), sequence);
