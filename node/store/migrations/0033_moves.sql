-- Studies that were filed under the wrong woman, and as which study they are filed now.
-- `owner` is nobody: a subject with a key of its own for what names the one and shows the
-- other. It is destroyed with the key of either.
create table study_moves (
    study_instance_uid text primary key references studies,
    filed_as           text not null unique,
    from_patient       uuid not null references patients,
    to_patient         uuid not null references patients,
    order_id           uuid references orders,
    owner              uuid not null unique references patients,
    at                 timestamptz not null,
    by                 text not null,
    resealed           boolean not null default false,
    reason             bytea not null   -- sealed with the owner's key
);
create index study_moves_from on study_moves (from_patient);
create index study_moves_to on study_moves (to_patient);
