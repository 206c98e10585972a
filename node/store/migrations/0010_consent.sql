-- What a patient has agreed to beyond her care. Without a row in force nothing of hers
-- leaves the node for research. Rows are closed, never deleted.
create table patient_consent (
    sequence     bigint generated always as identity primary key,
    patient_id   uuid not null references patients (patient_id),
    scope        text not null check (scope in ('research')),
    given_at     timestamptz not null,
    given_by     text not null,
    withdrawn_at timestamptz,
    withdrawn_by text,
    check ((withdrawn_at is null) = (withdrawn_by is null)),
    check (withdrawn_at >= given_at)
);
create unique index patient_consent_in_force on patient_consent (patient_id, scope)
    where withdrawn_at is null;
