-- What machines measured and told in their own Structured Reports, read once.

create table machine_reports (
    sop_instance_uid text primary key references instances on delete cascade,
    study_instance_uid text not null references studies,
    body bytea not null,            -- sealed
    read_at timestamptz not null
);
create index machine_reports_of_study on machine_reports (study_instance_uid);
