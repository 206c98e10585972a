-- Receiving in one round trip: the audit chain grows inside the statement that writes.

-- Appends one entry and returns its number. `canonical` is the text that the chain hashes
-- (node.domain.audit.canonical_text). Whoever appends holds the chain until its commit.
create function audit_append(
    at timestamptz, actor text, role text, action text, entity text, outcome text,
    detail text, canonical bytea
) returns bigint language plpgsql as $$
declare
    last_sequence bigint;
    last_hash bytea;
begin
    perform pg_advisory_xact_lock(20528);
    select e.sequence, e.hash into last_sequence, last_hash
        from audit_entries e order by e.sequence desc limit 1;
    if not found then
        last_sequence := 0;
        last_hash := decode(repeat('00', 32), 'hex');
    end if;
    insert into audit_entries (sequence, at, actor, role, action, entity, outcome,
                               detail, previous_hash, hash)
        values (last_sequence + 1, at, actor, role, action, entity, outcome,
                detail, last_hash, sha256(last_hash || canonical));
    return last_sequence + 1;
end $$;
