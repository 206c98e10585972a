// Which frame to show when, and frames on their way from the node.
import type { Clip } from '../api/types';
import { send } from '../api/http';

const PARALLEL = 6;
/** Decoded frames kept; a whole clip of bitmaps would be hundreds of megabytes. */
const DECODED = 8;

/** The frame (from 1) that is due; by the clock, so that a late one is skipped and the pace kept. */
export function frameAt(startFrame: number, elapsedMs: number, framesPerSecond: number, frames: number): number {
  const passed = Math.floor((elapsedMs * framesPerSecond) / 1000 + 1e-6);
  return ((startFrame - 1 + passed) % frames) + 1;
}

export function stepped(frame: number, by: number, frames: number): number {
  return ((((frame - 1 + by) % frames) + frames) % frames) + 1;
}

/** The rendered frames of one clip: compressed ones kept all, decoded ones a few. */
export class Frames {
  private readonly blobs = new Map<number, Promise<Blob>>();
  private readonly bitmaps = new Map<number, ImageBitmap>();
  private readonly abort = new AbortController();

  constructor(readonly clip: Clip) {}

  close(): void {
    this.abort.abort();
    for (const bitmap of this.bitmaps.values()) bitmap.close();
    this.bitmaps.clear();
  }

  /** The decoded frame when it is at hand. */
  ready(frame: number): ImageBitmap | undefined {
    return this.bitmaps.get(frame);
  }

  async decoded(frame: number): Promise<ImageBitmap> {
    const known = this.bitmaps.get(frame);
    if (known) return known;
    const bitmap = await createImageBitmap(await this.blob(frame));
    if (this.abort.signal.aborted) bitmap.close();
    else this.keep(frame, bitmap);
    return bitmap;
  }

  blob(frame: number): Promise<Blob> {
    const known = this.blobs.get(frame);
    if (known) return known;
    const asked = this.fetch(frame);
    this.blobs.set(frame, asked);
    asked.catch(() => this.blobs.delete(frame));
    return asked;
  }

  /** Fetch every frame, starting behind `from`. Stops when the clip is closed. */
  async preload(from: number): Promise<void> {
    const order = Array.from({ length: this.clip.frames }, (_, at) => stepped(from, at, this.clip.frames));
    const next = order.values();
    const work = async (): Promise<void> => {
      // oxlint-disable-next-line no-await-in-loop
      for (const frame of next) await this.blob(frame);
    };
    await Promise.all(Array.from({ length: PARALLEL }, work));
  }

  private async fetch(frame: number): Promise<Blob> {
    const response = await send(this.clip.frameUrl(frame), {
      accept: 'image/jpeg, image/png;q=0.9',
      signal: this.abort.signal,
    });
    return response.blob();
  }

  private keep(frame: number, bitmap: ImageBitmap): void {
    this.bitmaps.get(frame)?.close();
    this.bitmaps.set(frame, bitmap);
    while (this.bitmaps.size > DECODED) {
      const oldest = this.bitmaps.keys().next().value!;
      this.bitmaps.get(oldest)?.close();
      this.bitmaps.delete(oldest);
    }
  }
}
