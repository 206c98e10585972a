-- Other bytes that came under a SOP Instance UID that was taken. The first version stays
-- the one that everybody is served; these are for the staff to look at.
create table kept_version (
    blob_name text primary key,
    sop_instance_uid text not null references instances on delete cascade,
    number integer not null,        -- 2 is the first that came after the served one
    sha256 bytea not null,          -- of the data set as received
    size bigint not null,           -- of the Part 10 file
    sop_class_uid text not null,
    transfer_syntax_uid text not null,
    blob_key bytea not null,        -- sealed
    calling_ae text not null,
    process text not null,          -- the receiving process, by its stable name
    received_at timestamptz not null,
    unique (sop_instance_uid, number),
    unique (sop_instance_uid, sha256)
);
create index kept_version_of_process on kept_version (process);
