-- Who called the DICOM port lately, and what became of it: for those who connect machines.

create table callers (
    calling_ae text not null,
    address text not null,
    outcome text not null,          -- 'accepted', or why the association was rejected
    called_ae text not null,
    refused_classes text[] not null,    -- SOP Classes that it asked for in vain
    first_at timestamptz not null,
    last_at timestamptz not null,
    primary key (calling_ae, address, outcome)
);
create index callers_last on callers (last_at);
