-- What of a type was written lately, walked as far as somebody reads.
create index resource_versions_updated
    on resource_versions (resource_type, last_updated, resource_id, version);
