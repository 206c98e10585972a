-- What makes confirmed cases findable by likeness, and how cases ended.

-- One row per lesion and model: features of different models do not compare. A vector
-- is pseudonymous: it names nobody, and goes when her key is shredded. `confirmed` is kept
-- by the transaction that writes a version: signed, and the lesion still stands in it.
create table lesion_vector (
    case_id      uuid primary key default gen_random_uuid(),
    report_id    uuid not null references report (id),
    tracking_uid text not null,
    model_sha    text not null,
    patient_id   uuid not null,
    confirmed    boolean not null default false,
    written_at   timestamptz not null,
    unique (report_id, tracking_uid, model_sha)
);
create index lesion_vector_of_patient on lesion_vector (patient_id);
create index lesion_vector_newest on lesion_vector (model_sha, written_at desc)
    where confirmed;

-- With pgvector 0.8 or later an index answers in the same time for any archive. The role of
-- a node may not always create the extension; without it the newest cases are compared
-- one by one. `node.store.cases` asks the column which of the two it is.
do $$
begin
    begin
        create extension if not exists vector;
    exception when insufficient_privilege or undefined_file or feature_not_supported then
        null;
    end;
    if exists (
        select from pg_extension where extname = 'vector'
            and string_to_array(extversion, '.')::int[] >= array[0, 8]
    ) then
        alter table lesion_vector add column vector vector(128) not null;
        create index lesion_vector_alike on lesion_vector
            using hnsw (vector vector_cosine_ops) where confirmed;
    else
        alter table lesion_vector add column vector real[] not null
            check (array_length(vector, 1) = 128);
    end if;
end $$;

-- How a case ended, as physicians learn it. Rows are never changed: the newest one of a
-- lesion (or of the whole examination, without tracking UID) counts, and one without an
-- outcome takes back those before it.
create table case_outcome (
    sequence     bigint generated always as identity primary key,
    report_id    uuid not null references report (id),
    patient_id   uuid not null,
    tracking_uid text,
    outcome      text check (outcome in ('benign', 'malignant')),
    method       text check (method in ('biopsy', 'follow-up')),
    recorded_at  timestamptz not null,
    recorded_by  text not null,
    check ((outcome is null) = (method is null))
);
create index case_outcome_of_report on case_outcome (report_id, sequence);
create index case_outcome_of_patient on case_outcome (patient_id);
