-- Which versions of other resources are told along with an event, and why: each
-- "include=DiagnosticReport:result Observation/ID/VERSION". Bodies stay where they are.
alter table topic_events add column context text[] not null default '{}';
