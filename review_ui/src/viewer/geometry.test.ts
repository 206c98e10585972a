import { expect, test } from 'vitest';
import { frameAt, stepped } from './cine';
import { FITTED, lengthBetween, placement, toImage, toScreen, zoomAt } from './geometry';
import { dragged, FULL_WINDOW, transfer } from './window';

const image = { read: { x0: 0, y0: 0, x1: 640, y1: 480 } };
const screen = { width: 1000, height: 720 };
const region = { x0: 150, y0: 60, x1: 600, y1: 400, dx: 0.00625, dy: 0.005 };

test('a fitted image is centred and whole', () => {
  expect(placement(screen, image, FITTED)).toEqual({ scale: 1.5, left: 20, top: 0 });
});

test('the tissue fills the screen, whatever the scanner draws around it', () => {
  const place = placement(screen, { read: { x0: 100, y0: 40, x1: 300, y1: 184 } }, FITTED);
  expect(toScreen({ x: 100, y: 40 }, place)).toEqual({ x: 0, y: 0 });
  expect(toScreen({ x: 300, y: 184 }, place)).toEqual({ x: 1000, y: 720 });
});

test('image and screen points turn into each other at any zoom and shift', () => {
  const place = placement(screen, image, { zoom: 3.3, panX: -70, panY: 12 });
  const back = toImage(toScreen({ x: 123.4, y: 56.7 }, place), place);
  expect(back.x).toBeCloseTo(123.4);
  expect(back.y).toBeCloseTo(56.7);
});

test('zooming keeps the point under the hand where it is', () => {
  const at = { x: 700, y: 100 };
  const before = toImage(at, placement(screen, image, FITTED));
  const after = toImage(at, placement(screen, image, zoomAt(FITTED, 2.5, at, screen, image)));
  expect(after.x).toBeCloseTo(before.x);
  expect(after.y).toBeCloseTo(before.y);
});

test('a length in a calibrated region is in millimetres, each axis by its own scale', () => {
  expect(lengthBetween({ x: 200, y: 100 }, { x: 300, y: 100 }, [region])).toEqual({
    value: expect.closeTo(6.25),
    unit: 'mm',
  });
  expect(lengthBetween({ x: 200, y: 100 }, { x: 200, y: 200 }, [region]).value).toBeCloseTo(5);
});

test('a length that leaves the region, or has none, is in pixels and never in millimetres', () => {
  expect(lengthBetween({ x: 100, y: 100 }, { x: 300, y: 100 }, [region])).toEqual({ value: 200, unit: 'px' });
  expect(lengthBetween({ x: 0, y: 0 }, { x: 3, y: 4 }, [])).toEqual({ value: 5, unit: 'px' });
});

test('two regions with different scales are not mixed', () => {
  const right = { ...region, x0: 601, x1: 639, dx: 0.1 };
  expect(lengthBetween({ x: 590, y: 100 }, { x: 610, y: 100 }, [region, right]).unit).toBe('px');
});

test('cine goes by the clock: a late frame is skipped, the pace stays', () => {
  expect(frameAt(1, 0, 30, 60)).toBe(1);
  expect(frameAt(1, 1000, 30, 60)).toBe(31);
  expect(frameAt(59, 100, 30, 60)).toBe(2);
  expect(frameAt(1, 16.6, 60, 60)).toBe(1);
});

test('stepping wraps around in both directions', () => {
  expect(stepped(1, -1, 40)).toBe(40);
  expect(stepped(40, 1, 40)).toBe(1);
});

test('the full window changes nothing and a narrow one is centred', () => {
  expect(transfer(FULL_WINDOW)).toEqual({ slope: 1, intercept: 0 });
  const { slope, intercept } = transfer({ centre: 100, width: 50 });
  expect((100 / 255) * slope + intercept).toBeCloseTo(0.5);
  expect((75 / 255) * slope + intercept).toBeCloseTo(0);
});

test('a window cannot be dragged to nothing', () => {
  expect(dragged(FULL_WINDOW, -1000, -1000)).toEqual({ centre: 0, width: 8 });
});
