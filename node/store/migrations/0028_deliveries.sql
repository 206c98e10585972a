-- What is told to subscribers is sealed and kept once, however many are owed it; and
-- deliveries need no job of their own any more: who is owed what says it all.

create table topic_events (
    event_id uuid primary key,
    at timestamptz not null,
    patient_id uuid,                    -- whose key seals the body; null: the node's
    focus text not null,
    created boolean not null,           -- or a new version of what was there
    body bytea not null,
    sealed_as text not null             -- the row that the seal names
);
create index topic_events_at on topic_events (at);

alter table subscription_events add column event_id uuid;
update subscription_events set event_id = gen_random_uuid();
insert into topic_events (event_id, at, patient_id, focus, created, body, sealed_as)
    select event_id, at, patient_id, focus, false, body, subscription_id || '/' || number
    from subscription_events;
alter table subscription_events
    alter column event_id set not null,
    add foreign key (event_id) references topic_events,
    drop column at, drop column patient_id, drop column focus, drop column body;
create index subscription_events_of on subscription_events (event_id);

-- Who subscribed, and what the token opened then: nothing beyond it is ever sent.
alter table subscriptions
    add column channel text not null default 'rest-hook'
        check (channel in ('rest-hook', 'websocket')),
    add column media_type text not null default 'application/fhir+json',
    add column max_count integer not null default 1,
    add column filters text[] not null default '{}',
    add column ends_at timestamptz,
    add column owner text,              -- null: the node, or from before it was kept
    add column client_id uuid references clients,
    add column scopes text,             -- null: a session, not a token
    add column scope_patient_id text;

-- What a screen shows to bind its socket to subscriptions (hash), and for how long.
create table subscription_bindings (
    token_hash bytea primary key,
    subscription_ids uuid[] not null,
    expires_at timestamptz not null
);
create index subscription_bindings_expiry on subscription_bindings (expires_at);

delete from jobs where kind = 'deliver_notifications' and state <> 'done';
