-- Where instances go: the order in which jobs are taken, what still has to be routed,
-- what was sent where and under which UID, and what destinations said of themselves.

-- A lane is a queue of its own, so that a destination that is away holds up nobody else.
-- Within a lane the earliest `turn_at` is first: `not_before` less the job's head start.
alter table jobs add column lane text not null default '';
alter table jobs add column head_start interval not null default '0';
alter table jobs add column turn_at timestamptz;
update jobs set turn_at = not_before;
update jobs set lane = split_part(dedupe_key, '/', 2)
    where kind = 'send_instance' and dedupe_key is not null;
alter table jobs alter column turn_at set not null;
drop index jobs_ready;
create index jobs_ready on jobs (lane, turn_at, sequence, not_before) where state = 'ready';

-- Received instances that the routing rules have not been asked about: `arrival` in the
-- instant after it came, `complete` when its study is closed. Filled by a trigger, so that
-- no way into the archive can forget it.
create table unrouted_instances (
    sop_instance_uid text primary key references instances on delete cascade,
    study_instance_uid text not null,
    sequence bigint not null,
    waits_for text not null default 'arrival' check (waits_for in ('arrival', 'complete'))
);
create index unrouted_instances_of_study
    on unrouted_instances (study_instance_uid, sequence);
create index unrouted_instances_arrived
    on unrouted_instances (sequence) where waits_for = 'arrival';

create function instances_to_route() returns trigger language plpgsql as $$
begin
    insert into unrouted_instances (sop_instance_uid, study_instance_uid, sequence)
    select sop_instance_uid, study_instance_uid, sequence from arrived
    where origin = 'received';
    return null;
end $$;
create trigger instances_arrived after insert on instances
    referencing new table as arrived
    for each statement execute function instances_to_route();

-- One row for each instance and destination. `sending` with no end means that nobody knows
-- whether it arrived; `times` counts the sendings that were begun.
create table routed_instances (
    sop_instance_uid text not null references instances on delete cascade,
    destination text not null,
    study_instance_uid text not null,
    state text not null check (state in ('queued', 'sending', 'sent')),
    rule text not null,
    job_id uuid,
    queued_at timestamptz not null,
    at timestamptz not null,
    sent_as text,
    times integer not null default 0,
    error text,
    primary key (sop_instance_uid, destination)
);
create index routed_instances_of_study on routed_instances (study_instance_uid);
create index routed_instances_open on routed_instances (destination, queued_at)
    where state <> 'sent';
create index routed_instances_of_job on routed_instances (job_id) where state <> 'sent';

create view deliveries_now as
select r.*, i.sequence,
       case when r.state <> 'sent' and j.state = 'dead' then 'failed'
            else r.state end as now_state,
       coalesce(case when r.state <> 'sent' then j.error end, r.error, '') as told
from routed_instances r join instances i using (sop_instance_uid)
left join jobs j on j.job_id = r.job_id;

-- What a destination answered when it was asked, so that sending need not find it out
-- object by object. `stale` asks for it anew.
create table destination_probes (
    destination text primary key,
    target text not null,           -- what was asked: another address is another one
    at timestamptz not null,
    well boolean not null,
    stale boolean not null default false,
    findings jsonb not null,
    accepted jsonb not null,        -- SOP Class UID -> transfer syntaxes
    commitment boolean not null
);
