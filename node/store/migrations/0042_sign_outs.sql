-- A person who signs out at the hospital's sign-on is signed out here: what a sign-in is
-- called there (`sid`, as a hash), and which logout tokens were used before.

create table sign_ons (
    issuer text not null,
    sid_hash bytea not null,
    user_id uuid not null references people on delete cascade,
    expires_at timestamptz not null,
    primary key (issuer, sid_hash, user_id)
);
create index sign_ons_expiry on sign_ons (expires_at);
create index sign_ons_of_user on sign_ons (user_id);

alter table sessions add column sign_on_sid bytea;  -- null: not begun there, or not told

create table sign_on_logouts (
    issuer text not null,
    jti_hash bytea not null,
    expires_at timestamptz not null,
    primary key (issuer, jti_hash)
);
create index sign_on_logouts_expiry on sign_on_logouts (expires_at);

-- Of the trail: what failed, and what one person or program was refused, are rare. Without
-- these a page of them reads all that was refused to anybody.
create index audit_entries_failed on audit_entries (at, sequence)
    where outcome <> '0' and outcome <> '4';
create index audit_entries_refused_of_actor on audit_entries (actor, at, sequence)
    where outcome <> '0';
