-- The chain of the audit trail is verified beside the work, in pieces; here is how far.

create table audit_checks (
    check_id uuid primary key,
    asked_at timestamptz not null,
    asked_by text not null,
    first bigint not null,
    last bigint not null,
    checked bigint not null,
    hash bytea not null,
    ended_at timestamptz,
    fault text not null default ''
);
create unique index audit_checks_one_at_a_time on audit_checks ((true))
    where ended_at is null;
create index audit_checks_asked on audit_checks (asked_at);

-- Its rows come in the order of their entries: what belongs to a piece of the chain lies
-- together, and a summary of each stretch finds it. Rows at the end, which have none yet,
-- are read as they are.
create index audit_patients_sequence on audit_patients
    using brin (sequence) with (pages_per_range = 32, autosummarize = on);
