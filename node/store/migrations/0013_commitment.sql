-- Storage commitment (PS3.4 Annex J), both ways. UIDs and AE titles only: nobody is named.

-- What machines asked us to keep, and what we told them. A machine that asks again under
-- the same Transaction UID opens the next round: it has lost our answer.
create table commitment_requests (
    request_id uuid primary key,
    calling_ae text not null,
    transaction_uid text not null,
    sha256 bytea not null,          -- of the list: a repetition, or an error of the machine
    round integer not null default 1,
    asked_at timestamptz not null,  -- this round
    checked_at timestamptz,
    reported_at timestamptz,
    unique (calling_ae, transaction_uid)
);
create index commitment_requests_open on commitment_requests (asked_at)
    where reported_at is null;

create table commitment_references (
    request_id uuid not null references commitment_requests,
    sop_instance_uid text not null,
    sop_class_uid text not null,
    failure_reason integer,         -- (0008,1197) as last checked; null: kept, or unchecked
    primary key (request_id, sop_instance_uid, sop_class_uid)
);

-- Our results at each archive. An archive that takes a lesser class has it under another
-- UID. `awaited`: it counts as delivered when the archive has committed itself.
create table deliveries (
    sop_instance_uid text not null,
    destination text not null,
    study_instance_uid text not null,
    sent_class_uid text not null,
    sent_instance_uid text not null,
    state text not null check (state in ('sent', 'committed', 'failed')),
    awaited boolean not null,
    sends integer not null default 1,
    requests integer not null default 0,
    transaction_uid text,           -- the newest request that names it; null: to be asked
    reason text,
    told boolean not null default false,  -- people were told that it failed
    sent_at timestamptz not null,
    settled_at timestamptz,
    primary key (sop_instance_uid, destination)
);
create index deliveries_waiting on deliveries (destination, study_instance_uid)
    where awaited and state = 'sent';
create index deliveries_of_study on deliveries (study_instance_uid);
create index deliveries_asked on deliveries (transaction_uid)
    where transaction_uid is not null;

create table commitment_transactions (
    transaction_uid text primary key,
    destination text not null,
    made_at timestamptz not null,
    accepted_at timestamptz,        -- the archive has taken the request
    answered_at timestamptz,        -- its first report came
    given_up_at timestamptz         -- no report came: asked again under another UID
);
create index commitment_transactions_open on commitment_transactions (accepted_at)
    where answered_at is null and given_up_at is null;

-- What a transaction asked for: a report may come when its instances were asked for again.
create table commitment_asked (
    transaction_uid text not null references commitment_transactions,
    sent_instance_uid text not null,
    primary key (transaction_uid, sent_instance_uid)
);
