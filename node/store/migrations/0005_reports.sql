-- One row per report, one sealed row per version; versions are never changed.
CREATE TABLE report (
    id                 uuid PRIMARY KEY,
    study_instance_uid text NOT NULL UNIQUE,
    patient_id         uuid NOT NULL,
    handle             text NOT NULL UNIQUE,   -- what the patient's phone knows it by
    created_at         timestamptz NOT NULL
);
CREATE INDEX report_of_patient ON report (patient_id, created_at);

CREATE TABLE report_version (
    report_id   uuid NOT NULL REFERENCES report (id),
    number      integer NOT NULL,
    status      text NOT NULL,
    author_kind text NOT NULL,
    written_at  timestamptz NOT NULL,
    body        bytea NOT NULL,
    PRIMARY KEY (report_id, number)
);

CREATE TABLE report_disclosure (
    report_id   uuid NOT NULL REFERENCES report (id),
    number      integer NOT NULL,
    recorded_at timestamptz NOT NULL,
    body        bytea NOT NULL,
    PRIMARY KEY (report_id, number)
);

CREATE TABLE patient_handle (
    patient_id uuid PRIMARY KEY,
    handle     text NOT NULL UNIQUE
);
