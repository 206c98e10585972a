// Where image and screen meet. Everything a doctor draws is kept in image pixels.
import type { Clip, Region } from '../api/types';

export interface Point {
  x: number;
  y: number;
}

export interface View {
  /** 1 = all of the tissue fits. */
  zoom: number;
  /** Shift of the image centre on the screen, in CSS pixels. */
  panX: number;
  panY: number;
}

export const FITTED: View = { zoom: 1, panX: 0, panY: 0 };
export const MIN_ZOOM = 0.5;
export const MAX_ZOOM = 12;

export interface Extent {
  width: number;
  height: number;
}

export interface Placement {
  scale: number;
  left: number;
  top: number;
}

/** What is fitted to the screen: the tissue, not the dark frame that the scanner draws around it. */
export type Fitted = Pick<Clip, 'read'>;

/** Where the image's origin lies on the screen, and how many screen pixels one of its own takes. */
export function placement(screen: Extent, image: Fitted, view: View): Placement {
  const { x0, y0, x1, y1 } = image.read;
  const scale = Math.min(screen.width / (x1 - x0), screen.height / (y1 - y0)) * view.zoom;
  return {
    scale,
    left: screen.width / 2 - ((x0 + x1) / 2) * scale + view.panX,
    top: screen.height / 2 - ((y0 + y1) / 2) * scale + view.panY,
  };
}

export function toImage(at: Point, place: Placement): Point {
  return { x: (at.x - place.left) / place.scale, y: (at.y - place.top) / place.scale };
}

export function toScreen(at: Point, place: Placement): Point {
  return { x: place.left + at.x * place.scale, y: place.top + at.y * place.scale };
}

/** Zoom so that the image point under `at` stays under it. */
export function zoomAt(
  view: View,
  factor: number,
  at: Point,
  screen: Extent,
  image: Fitted,
): View {
  const zoom = Math.min(MAX_ZOOM, Math.max(MIN_ZOOM, view.zoom * factor));
  const under = toImage(at, placement(screen, image, view));
  const moved = toScreen(under, placement(screen, image, { ...view, zoom }));
  return { zoom, panX: view.panX + at.x - moved.x, panY: view.panY + at.y - moved.y };
}

export interface Length {
  value: number;
  /** px: the modality sent no scale for this place. Never shown as millimetres. */
  unit: 'mm' | 'px';
}

/** The distance between two image points; in mm only when both lie in one calibrated region. */
export function lengthBetween(a: Point, b: Point, regions: readonly Region[]): Length {
  const region = regions.find((r) => inside(a, r) && inside(b, r));
  if (!region) return { value: Math.hypot(b.x - a.x, b.y - a.y), unit: 'px' };
  const cm = Math.hypot((b.x - a.x) * region.dx, (b.y - a.y) * region.dy);
  return { value: 10 * cm, unit: 'mm' };
}

function inside(point: Point, region: Region): boolean {
  return point.x >= region.x0 && point.x <= region.x1 && point.y >= region.y0 && point.y <= region.y1;
}
