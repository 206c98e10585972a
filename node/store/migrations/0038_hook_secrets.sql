-- What a subscriber's calls are signed with, sealed; null: with the secret of the site.
-- For a while after a change the one before signs too.
alter table subscriptions
    add column secret bytea,
    add column earlier_secret bytea,
    add column earlier_secret_until timestamptz,
    add check ((earlier_secret is null) = (earlier_secret_until is null));
