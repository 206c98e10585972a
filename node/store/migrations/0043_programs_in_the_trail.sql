-- What a program did for a person is found by the program too.
create index audit_entries_client on audit_entries (audit_client_of(detail), at, sequence)
    where detail like '%"client": "%';
