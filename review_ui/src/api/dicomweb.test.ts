import { expect, test } from 'vitest';
import { calibratedRegions, type Header, isPicture, readArea, toClip } from './dicomweb';

const value = (v: unknown) => ({ Value: [v] });

function region(change: Partial<Record<string, unknown>> = {}): Header {
  const tags = {
    '00186012': 1,
    '00186014': 1,
    '00186018': 10,
    '0018601A': 20,
    '0018601C': 630,
    '0018601E': 470,
    '00186024': 3,
    '00186026': 3,
    '0018602C': 0.005,
    '0018602E': -0.006,
    ...change,
  };
  return Object.fromEntries(Object.entries(tags).map(([tag, v]) => [tag, value(v)]));
}

const header = (...regions: Header[]): Header => ({
  '0020000D': value('1.2'),
  '0020000E': value('1.2.1'),
  '00080018': value('1.2.1.1'),
  '00280010': value(480),
  '00280011': value(640),
  '00280008': value('60'),
  '00181063': value('33.3333'),
  '00186011': { Value: regions },
});

test('reports, selections and masks are no pictures', () => {
  expect(isPicture(header(region()))).toBe(true);
  expect(isPicture({ '00080016': value('1.2.840.10008.5.1.4.1.1.88.59') })).toBe(false);
  expect(isPicture({ ...header(), '00080016': value('1.2.840.10008.5.1.4.1.1.66.4') })).toBe(false);
});

test('a clip tells its frames, its pace and where its frames are', () => {
  const clip = toClip(header(region()));
  expect(clip.frames).toBe(60);
  expect(clip.framesPerSecond).toBeCloseTo(30, 2);
  expect(clip.frameUrl(7)).toBe('/dicom-web/studies/1.2/series/1.2.1/instances/1.2.1.1/frames/7/rendered');
});

test('a region in centimetres is calibrated, whatever the sign of its increments', () => {
  expect(calibratedRegions(header(region()), 480, 640)).toEqual([
    { x0: 10, y0: 20, x1: 630, y1: 470, dx: 0.005, dy: 0.006 },
  ]);
});

test.each([
  ['seconds along x', { '00186024': 4 }],
  ['no unit along y', { '00186026': 0 }],
  ['no increment', { '0018602C': 0 }],
  ['a region beyond the image, left over from another size', { '0018601C': 900 }],
])('a region with %s is not calibrated', (_, change) => {
  expect(calibratedRegions(header(region(change)), 480, 640)).toEqual([]);
});

test('a header without regions is not calibrated', () => {
  expect(calibratedRegions({}, 480, 640)).toEqual([]);
});

test('a heat map lies on the tissue region, whose bounds are inclusive', () => {
  expect(readArea(header(region()), 480, 640)).toEqual({ x0: 10, y0: 20, x1: 631, y1: 471 });
});

test('a heat map lies on the whole image where no single tissue region is told', () => {
  const whole = { x0: 0, y0: 0, x1: 640, y1: 480 };
  expect(readArea(header(), 480, 640)).toEqual(whole);
  expect(readArea(header(region({ '00186014': 2 })), 480, 640)).toEqual(whole);
  expect(readArea(header(region({ '0018601C': 900, '0018601E': 900, '00186018': 0, '0018601A': 0 })), 480, 640)).toEqual(whole);
});
