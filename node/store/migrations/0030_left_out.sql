-- What releases before had no resource for: lesions' places and papers of reports that
-- stand, consents of patients. The worker publishes them a few at a time and takes each
-- row away; a new database has none.
create table left_out (
    kind text not null check (kind in ('report', 'consent')),
    id   uuid not null,
    primary key (kind, id)
);
insert into left_out select 'report', id from report;
insert into left_out select distinct 'consent', patient_id from patient_consent;
