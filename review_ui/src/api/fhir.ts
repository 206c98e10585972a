// Reading and writing reports over /fhir.
import { readExamOfImages } from './dicomweb';
import { ApiError, json, send } from './http';
import { assembleHistory } from './history';
import { Index, type AiVersions, idOf, saidByAi, toExam, toFailedWork, toReport, toWorklistRow } from './parse';
import type { Draft } from '../report/draft';
import type { Exam, FailedWork, Report, Resource, WorklistRow } from './types';
import { type Act, buildTransaction, communication } from './write';

const FHIR = 'application/fhir+json';
const INCLUDES =
  '_include=DiagnosticReport:subject&_include=DiagnosticReport:result&_include:iterate=Observation:has-member';
const WORKLIST_LENGTH = 100;
const IDS_A_QUERY = 40;

async function get(path: string, background = false): Promise<Resource> {
  return json(`/fhir/${path}`, { accept: FHIR, background });
}

async function post(path: string, body: Resource): Promise<void> {
  await send(`/fhir/${path}`, {
    method: 'POST',
    body,
    accept: FHIR,
    headers: { 'Content-Type': FHIR, Prefer: 'return=minimal' },
  });
}

/** Fill in what the search did not include. */
async function complete(index: Index, background: boolean): Promise<Index> {
  // Twice: lesions first, then what the lesions are made of.
  for (let round = 0; round < 2; round += 1) {
    const ids = index.missingObservations().map((reference) => idOf(reference)!);
    for (let at = 0; at < ids.length; at += IDS_A_QUERY) {
      const some = ids.slice(at, at + IDS_A_QUERY);
      // oxlint-disable-next-line no-await-in-loop
      index.add(await get(`Observation?_id=${some.join(',')}&_count=${some.length}`, background));
    }
  }
  return index;
}

/** Reports, newest change first; with `since` only those that changed from then on. */
export async function readWorklist(since: string | null, background: boolean): Promise<WorklistRow[]> {
  const changed = since ? `&_lastUpdated=ge${encodeURIComponent(since)}` : '';
  const bundle = await get(
    `DiagnosticReport?_count=${WORKLIST_LENGTH}&_sort=-_lastUpdated&${INCLUDES}${changed}`,
    background,
  );
  const index = await complete(new Index().add(bundle), background);
  return index.all('DiagnosticReport').map((report) => toWorklistRow(report, index));
}

/** With `named`, each says whose examination it is. */
export async function readFailedWork(background: boolean, named: boolean): Promise<FailedWork[]> {
  const tasks = new Index().add(await get('Task?status=failed,cancelled&_count=50', background)).all('Task');
  return Promise.all(
    tasks.map(async (task) => {
      const study = idOf(task.focus?.reference);
      return toFailedWork(task, named && study !== null ? await readExam(study, background) : null);
    }),
  );
}

/** They do not change, and are asked for at every refresh. */
const exams = new Map<string, Exam | null>();

async function readExam(studyUid: string, background: boolean): Promise<Exam | null> {
  if (!exams.has(studyUid)) exams.set(studyUid, await findExam(studyUid, background));
  return exams.get(studyUid) ?? null;
}

async function findExam(studyUid: string, background: boolean): Promise<Exam | null> {
  try {
    const index = new Index().add(
      await get(`ImagingStudy?_id=${studyUid}&_include=ImagingStudy:subject`, background),
    );
    const study = index.get(`ImagingStudy/${studyUid}`);
    // A study that was never read is not in /fhir yet, but its images are there.
    return study ? toExam(study, index) : await readExamOfImages(studyUid, background);
  } catch (error) {
    if (error instanceof ApiError && error.status < 500 && error.status > 0) return null;
    throw error;
  }
}

export async function retryWork(work: FailedWork): Promise<void> {
  const resource = { ...work.source, status: 'requested' };
  await send(`/fhir/Task/${work.id}`, {
    method: 'PUT',
    body: resource,
    accept: FHIR,
    headers: { 'Content-Type': FHIR },
  });
}

export async function readReport(id: string): Promise<Report> {
  const bundle = await get(`DiagnosticReport?_id=${encodeURIComponent(id)}&${INCLUDES}`);
  const index = await complete(new Index().add(bundle), false);
  const source = index.get(`DiagnosticReport/${id}`) ?? (await get(`DiagnosticReport/${id}`));
  const report = toReport(source, index, await readAiVersions(index.all('Observation')));
  return { ...report, aiName: await readAiName(source, index) };
}

/** For every value that is no longer the AI's: the version in which it was. */
async function readAiVersions(observations: Resource[]): Promise<AiVersions> {
  const changed = observations.filter((row) => !saidByAi(row) && row.meta?.versionId !== '1');
  const found = await Promise.all(
    changed.map(async (row): Promise<[string, Resource | undefined]> => {
      const history = await get(`Observation/${row.id}/_history`);
      const versions: Resource[] = (history.entry ?? []).map((entry: Resource) => entry.resource);
      return [row.id, versions.find((version) => saidByAi(version))];
    }),
  );
  return new Map(found.filter((pair): pair is [string, Resource] => pair[1] !== undefined));
}

async function readAiName(report: Resource, index: Index): Promise<string | null> {
  const devices = [
    ...(report.performer ?? []).map((row: Resource) => row.reference),
    ...index.all('Observation').map((row) => row.device?.reference),
  ];
  const reference = devices.find((row) => row?.startsWith('Device/'));
  if (!reference) return null;
  try {
    const device = await get(reference);
    const version = device.version?.[0]?.value;
    return [device.deviceName?.[0]?.name, version].filter(Boolean).join(' ');
  } catch {
    return idOf(reference);
  }
}

export async function saveReport(report: Report, draft: Draft, act: Act): Promise<void> {
  await post('', buildTransaction(report, draft, act));
}

export async function recordTold(report: Report, act: Act): Promise<void> {
  await post('Communication', communication(report, act));
}

/** Whether somebody has already recorded that the patient was told; null when unknown. */
export async function readTold(report: Report): Promise<boolean | null> {
  try {
    const bundle = await get(`Communication?about=DiagnosticReport/${report.id}&status=completed`);
    return new Index().add(bundle).all('Communication').length > 0;
  } catch {
    return null;
  }
}

/** The patient's other reports, newest first. */
export async function readPriors(report: Report): Promise<WorklistRow[]> {
  if (!report.person.id) return [];
  const bundle = await get(`DiagnosticReport?subject=Patient/${report.person.id}&_sort=-date&_count=20&${INCLUDES}`);
  const index = await complete(new Index().add(bundle), false);
  return index
    .all('DiagnosticReport')
    .filter((row) => row.id !== report.id)
    .map((row) => toWorklistRow(row, index));
}

export interface ReportVersion {
  version: string;
  at: string;
  /** Why it was changed after signing. */
  reason: string | null;
  report: Report;
}

/** Every version of a report with the values that held at its time, oldest first. */
export async function readHistory(report: Report): Promise<ReportVersion[]> {
  const ids = [...report.sources.observations.keys()];
  const [versions, provenances, ...histories] = await Promise.all([
    readVersions(`DiagnosticReport/${report.id}`),
    get(`Provenance?target=DiagnosticReport/${report.id}&_count=200`),
    ...ids.map((id) => readVersions(`Observation/${id}`)),
  ]);
  const older = new Map(histories.flatMap((history) => aiOf(history)));
  return assembleHistory(versions, new Index().add(provenances).all('Provenance'), histories).map(
    ({ source, reason, observations }) => ({
      version: String(source.meta?.versionId),
      at: String(source.meta?.lastUpdated ?? ''),
      reason,
      report: toReport(source, new Index().add({ entry: observations.map((resource) => ({ resource })) }), older),
    }),
  );
}

async function readVersions(path: string): Promise<Resource[]> {
  const bundle = await get(`${path}/_history`);
  const versions: Resource[] = (bundle.entry ?? []).map((entry: Resource) => entry.resource).filter(Boolean);
  return versions.toSorted((a, b) => Number(a.meta?.versionId) - Number(b.meta?.versionId));
}

function aiOf(history: Resource[]): [string, Resource][] {
  const found = history.findLast((row) => saidByAi(row));
  return found ? [[found.id, found]] : [];
}
