-- Studies that found no order, or another patient's: kept by the transaction that matches
-- them, so that the list costs the same with ten studies and with ten million.
alter table studies add column unmatched text
    check (unmatched in ('no-order', 'unknown-accession', 'other-patient'));
update studies s set unmatched = case
    when exists (select from study_orders o
        where o.study_instance_uid = s.study_instance_uid and not o.agrees)
        then 'other-patient'
    when exists (select from study_orders o
        where o.study_instance_uid = s.study_instance_uid) then null
    when s.accession_blind is not null then 'unknown-accession'
    else 'no-order' end;
create index studies_unmatched on studies (opened_at desc, study_instance_uid desc)
    where unmatched is not null;

alter table study_orders drop constraint study_orders_named_by_check;
alter table study_orders add constraint study_orders_named_by_check
    check (named_by in ('study uid', 'request', 'accession', 'person'));

-- What a person said about a study and its orders. Rows are never changed: the newest of
-- a study and an order counts, and without an order it says whether one is missed at all.
create table order_decisions (
    sequence           bigint generated always as identity primary key,
    study_instance_uid text not null references studies,
    order_id           uuid references orders,
    verdict            text not null
        check (verdict in ('linked', 'unlinked', 'none-expected', 'expected')),
    at                 timestamptz not null,
    by                 text not null,
    reason             bytea not null   -- sealed with the key of the study's patient
);
create index order_decisions_of_study on order_decisions (study_instance_uid, sequence);

-- By what two rows may stand for one woman: the number whoever gave it, and name with
-- birth date. Blind, like every index. `traits` tells by which rules a row was indexed.
alter table patients add column traits smallint not null default 0;
create index patients_without_traits on patients (patient_id) where traits = 0;
alter table patients add column named_by_ehr boolean not null default false;
update patients p set named_by_ehr = true
    where exists (select from orders o where o.patient_id = p.patient_id);
create index patients_named_by_ehr on patients (patient_id) where named_by_ehr;
create table patient_traits (
    patient_id uuid not null references patients,
    kind       text not null check (kind in ('number', 'person')),
    trait      bytea not null,
    primary key (patient_id, kind, trait)
);
create index patient_traits_shared on patient_traits (kind, trait, patient_id);
create table patient_pairs (
    one     uuid not null references patients,
    other   uuid not null references patients,
    kind    text not null check (kind in ('number', 'person')),
    primary key (one, other, kind),
    check (one < other)
);
create index patient_pairs_other on patient_pairs (other);
