-- What queries of other systems search by (PS3.4 C.2.2.2).

-- Blind index of the Patient ID alone: a C-FIND rarely names the issuer. Null for patients
-- written before it existed: they are opened and compared.
alter table patients add column number_blind bytea;
create index patients_number on patients (number_blind);

-- Answers come newest first in pages, each page from where the last one ended.
create index studies_catalogue on studies
    ((coalesce(study_date, '-infinity'::date)), study_instance_uid);
create index instances_of_modality on instances (modality, study_instance_uid);

-- Rejection notes are Key Object Selection documents.
create index instances_key_objects on instances (study_instance_uid)
    where sop_class_uid = '1.2.840.10008.5.1.4.1.1.88.59';
