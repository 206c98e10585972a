// What the viewer shows, as signals that keys, buttons and drawing share.
import { batch, computed, signal } from '@preact/signals';
import type { Clip, Lesion } from '../api/types';
import { frameAt, Frames, stepped } from './cine';
import { FITTED, type Point, type View } from './geometry';
import { FULL_WINDOW, type Window } from './window';

export const TOOLS = ['window', 'pan', 'length'] as const;
export type Tool = (typeof TOOLS)[number];

/** A length as drawn: ends in pixels of the image, on one frame of one instance. */
export interface Drawn {
  sopInstanceUid: string;
  frame: number;
  a: Point;
  b: Point;
}

export class ViewerModel {
  readonly clips = signal<readonly Clip[]>([]);
  readonly captures = signal<readonly Clip[]>([]);
  readonly index = signal(0);
  readonly frame = signal(1);
  readonly playing = signal(false);
  readonly view = signal<View>(FITTED);
  readonly window = signal<Window>(FULL_WINDOW);
  readonly tool = signal<Tool>('window');
  readonly heat = signal(false);
  readonly opacity = signal(0.55);
  readonly box = signal(true);
  readonly drawn = signal<readonly Drawn[]>([]);
  readonly lesion = signal<Lesion | null>(null);
  readonly fault = signal<unknown>(null);

  readonly clip = computed(() => this.clips.value[this.index.value] ?? null);
  /** Box and heat map were made from one frame and are true for that one only. */
  readonly onLesionFrame = computed(
    () =>
      this.lesion.value !== null &&
      this.clip.value?.sopInstanceUid === this.lesion.value.sopInstanceUid &&
      this.frame.value === this.lesion.value.frame,
  );
  readonly heatCapture = computed(
    () => this.captures.value.find((c) => c.sopInstanceUid === this.lesion.value?.heatMap) ?? null,
  );

  private readonly opened = new Map<string, Frames>();
  private animation = 0;

  show(clips: readonly Clip[], captures: readonly Clip[]): void {
    batch(() => {
      this.clips.value = clips;
      this.captures.value = captures;
    });
    this.select(0);
  }

  /** Go to where the AI marked a lesion. */
  focus(lesion: Lesion | null): void {
    this.lesion.value = lesion;
    const at = this.clips.value.findIndex((clip) => clip.sopInstanceUid === lesion?.sopInstanceUid);
    if (at >= 0 && lesion) this.select(at, lesion.frame);
  }

  select(index: number, frame = 1): void {
    const clip = this.clips.value[index];
    if (!clip) return;
    this.pause();
    const other = index !== this.index.value;
    batch(() => {
      this.index.value = index;
      this.frame.value = Math.min(frame, clip.frames);
      this.fault.value = null;
      if (other) this.fit();
    });
  }

  frames(clip: Clip): Frames {
    const known = this.opened.get(clip.sopInstanceUid);
    if (known) return known;
    const fresh = new Frames(clip);
    this.opened.set(clip.sopInstanceUid, fresh);
    return fresh;
  }

  stepClip(by: number): void {
    if (this.clips.value.length > 0) this.select(stepped(this.index.value + 1, by, this.clips.value.length) - 1);
  }

  step(by: number): void {
    const clip = this.clip.value;
    if (!clip) return;
    this.pause();
    this.frame.value = stepped(this.frame.value, by, clip.frames);
  }

  toggleCine(): void {
    if (this.playing.value) this.pause();
    else this.play();
  }

  play(): void {
    const clip = this.clip.value;
    if (!clip || clip.frames < 2) return;
    this.playing.value = true;
    void this.frames(clip)
      .preload(this.frame.value)
      .catch(() => {});
    const from = this.frame.value;
    const started = performance.now();
    const tick = (now: number) => {
      this.frame.value = frameAt(from, Math.max(0, now - started), clip.framesPerSecond, clip.frames);
      this.animation = requestAnimationFrame(tick);
    };
    this.animation = requestAnimationFrame(tick);
  }

  pause(): void {
    cancelAnimationFrame(this.animation);
    this.playing.value = false;
  }

  fit(): void {
    this.view.value = FITTED;
    this.window.value = FULL_WINDOW;
  }

  close(): void {
    this.pause();
    for (const frames of this.opened.values()) frames.close();
    this.opened.clear();
  }
}
