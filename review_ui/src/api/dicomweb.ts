// Images: headers and rendered frames of a study (PS3.18 WADO-RS).
import { json } from './http';
import type { Box, Clip, Exam, Region } from './types';

type Attribute = { Value?: unknown[] };
export type Header = Record<string, Attribute>;

const SECONDARY_CAPTURE = '1.2.840.10008.5.1.4.1.1.7';
const SEGMENTATION = '1.2.840.10008.5.1.4.1.1.66.4';
const CENTIMETRE = 3;
const DEFAULT_FRAMES_PER_SECOND = 30;

export async function readClips(studyUid: string): Promise<{ clips: Clip[]; captures: Clip[] }> {
  const headers: Header[] = await json(`/dicom-web/studies/${studyUid}/metadata`, {
    accept: 'application/dicom+json',
  });
  const images = headers.filter(isPicture);
  const captures = images.filter((header) => text(header, '00080016').startsWith(SECONDARY_CAPTURE));
  const clips = images.filter((header) => !captures.includes(header));
  clips.sort((a, b) => (number(a, '00200013') ?? 0) - (number(b, '00200013') ?? 0));
  return { clips: clips.map(toClip), captures: captures.map(toClip) };
}

/** Whose images these are, as masked by the node; null when there are none. */
export async function readExamOfImages(studyUid: string, background: boolean): Promise<Exam | null> {
  const [header]: Header[] = await json(`/dicom-web/studies/${studyUid}/series`, {
    accept: 'application/dicom+json',
    background,
  });
  const name = (header?.['00100010']?.Value?.[0] as { Alphabetic?: string } | undefined)?.Alphabetic;
  if (!name) return null;
  return { person: { id: null, name, sex: 'unknown', age: null }, studyDate: null, accession: '' };
}

/** Whether an instance is something to look at: a mask has rows, too, and shows nothing. */
export function isPicture(header: Header): boolean {
  return number(header, '00280010') !== null && text(header, '00080016') !== SEGMENTATION;
}

export function toClip(header: Header): Clip {
  const [study, series, instance] = ['0020000D', '0020000E', '00080018'].map((tag) => text(header, tag));
  const path = `/dicom-web/studies/${study}/series/${series}/instances/${instance}`;
  const rows = number(header, '00280010') ?? 0;
  const columns = number(header, '00280011') ?? 0;
  return {
    sopInstanceUid: instance ?? '',
    rows,
    columns,
    frames: number(header, '00280008') ?? 1,
    framesPerSecond: framesPerSecond(header),
    regions: calibratedRegions(header, rows, columns),
    read: readArea(header, rows, columns),
    frameUrl: (frame) => `${path}/frames/${frame}/rendered`,
    thumbnailUrl: `${path}/frames/1/thumbnail`,
  };
}

function framesPerSecond(header: Header): number {
  const frameTimeMs = number(header, '00181063');
  if (frameTimeMs !== null && frameTimeMs > 0) return 1000 / frameTimeMs;
  return number(header, '00180040') ?? number(header, '00082144') ?? DEFAULT_FRAMES_PER_SECOND;
}

/**
 * The regions whose pixels have a trustworthy size (PS3.3 C.8.5.5).
 * A region that reaches outside the image belongs to another size of it: every
 * length in it would be wrong by the same factor, so it counts as uncalibrated.
 */
export function calibratedRegions(header: Header, rows: number, columns: number): Region[] {
  const items = (header['00186011']?.Value ?? []) as Header[];
  return items
    .filter((item) => number(item, '00186024') === CENTIMETRE && number(item, '00186026') === CENTIMETRE)
    .map((item) => ({
      x0: number(item, '00186018') ?? -1,
      y0: number(item, '0018601A') ?? -1,
      x1: number(item, '0018601C') ?? -1,
      y1: number(item, '0018601E') ?? -1,
      dx: Math.abs(number(item, '0018602C') ?? 0),
      dy: Math.abs(number(item, '0018602E') ?? 0),
    }))
    .filter((r) => r.dx > 0 && r.dy > 0 && r.x0 >= 0 && r.y0 >= 0 && r.x1 < columns && r.y1 < rows);
}

/** The part of the image that an AI heat map covers: its only 2D tissue region, clipped. */
export function readArea(header: Header, rows: number, columns: number): Box {
  const items = (header['00186011']?.Value ?? []) as Header[];
  const tissue = items.filter((item) => number(item, '00186012') === 1 && number(item, '00186014') === 1);
  const [only] = tissue;
  if (!only || tissue.length > 1) return { x0: 0, y0: 0, x1: columns, y1: rows };
  return {
    x0: Math.max(0, number(only, '00186018') ?? 0),
    y0: Math.max(0, number(only, '0018601A') ?? 0),
    x1: Math.min(columns, (number(only, '0018601C') ?? columns - 1) + 1),
    y1: Math.min(rows, (number(only, '0018601E') ?? rows - 1) + 1),
  };
}

function number(header: Header, tag: string): number | null {
  const value = header[tag]?.Value?.[0];
  const parsed = typeof value === 'string' ? Number(value) : value;
  return typeof parsed === 'number' && Number.isFinite(parsed) ? parsed : null;
}

function text(header: Header, tag: string): string {
  const value = header[tag]?.Value?.[0];
  return typeof value === 'string' ? value : '';
}
