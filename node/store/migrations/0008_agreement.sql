-- What the algorithm drafted beside what the doctor signed: keys of the lexicon only.
-- Values are clear, as codes are in the search index; nothing here names a patient.

create table agreement_models (
    model text primary key,          -- the author id of the drafts
    name text not null,              -- name, version and weights as people read them
    last_signed_at timestamptz not null
);

create table agreement_reports (
    report_id uuid not null,
    model text not null references agreement_models,
    machine text not null,           -- Manufacturer and Manufacturer's Model Name; '' unknown
    version integer not null,        -- the signed version that was compared
    signed_at timestamptz not null,  -- the first signature: amendments do not move a report
    primary key (report_id, model)
);
create index agreement_reports_in_order on agreement_reports (model, signed_at, report_id);

-- A value is null where it was not assessed. Lesion 0 is the examination.
create table agreement_values (
    report_id uuid not null,
    model text not null,
    lesion smallint not null,
    field text not null,
    ai_value text,
    signed_value text,
    leads boolean not null,        -- the one of its field that the drift test counts
    primary key (report_id, model, lesion, field),
    foreign key (report_id, model) references agreement_reports on delete cascade
);

-- The same counted, so that a page over years reads as little as one over a week.
-- `starts` is the Monday of the week or the first of the month, whichever is later:
-- both weeks and months are sums of such pieces.
create table agreement_counts (
    model text not null,
    starts date not null,
    machine text not null,
    field text not null,
    leads boolean not null,
    ai_value text,
    signed_value text,
    n integer not null,
    unique nulls not distinct
        (model, starts, machine, field, leads, ai_value, signed_value)
);

-- Fields in which the newest judged window differs from what was before.
create table agreement_alarms (
    model text not null references agreement_models,
    field text not null,
    since timestamptz not null,
    primary key (model, field)
);
