-- Many entries of the audit trail under one hold of the chain.

-- Appends entries in the order of the arrays and returns the number of the last. Null
-- where there is nothing to append: then the chain is not even held.
create function audit_append_all(
    at timestamptz[], actor text[], role text[], action text[], entity text[],
    outcome text[], detail text[], canonical bytea[]
) returns bigint language plpgsql strict as $$
declare
    last_sequence bigint;
    last_hash bytea;
    next_hash bytea;
begin
    perform pg_advisory_xact_lock(20528);
    select e.sequence, e.hash into last_sequence, last_hash
        from audit_entries e order by e.sequence desc limit 1;
    if not found then
        last_sequence := 0;
        last_hash := decode(repeat('00', 32), 'hex');
    end if;
    for i in 1 .. cardinality(at) loop
        next_hash := sha256(last_hash || canonical[i]);
        last_sequence := last_sequence + 1;
        insert into audit_entries (sequence, at, actor, role, action, entity, outcome,
                                   detail, previous_hash, hash)
            values (last_sequence, at[i], actor[i], role[i], action[i], entity[i],
                    outcome[i], detail[i], last_hash, next_hash);
        last_hash := next_hash;
    end loop;
    return last_sequence;
end $$;
