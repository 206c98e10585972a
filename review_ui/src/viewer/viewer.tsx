import { type Signal, useSignal, useSignalEffect } from '@preact/signals';
import { useEffect, useRef } from 'preact/hooks';
import { explain } from '../app/state';
import { shownNumber, t } from '../i18n';
import { type Extent, lengthBetween, placement, type Point, toImage, zoomAt } from './geometry';
import { type Drawn, TOOLS, type ViewerModel } from './model';
import { dragged, isFull, transfer } from './window';

const PRIMARY_BUTTON = 0;

export function Viewer({ model }: { model: ViewerModel }) {
  return (
    <section class="viewer" aria-label={t('viewer.title')}>
      <Strip model={model} />
      <div class="stage">
        <Stage model={model} />
        <Controls model={model} />
      </div>
    </section>
  );
}

function Strip({ model }: { model: ViewerModel }) {
  if (model.clips.value.length < 2) return null;
  return (
    <nav class="strip" aria-label={t('viewer.clips')}>
      {model.clips.value.map((clip, at) => (
        <button
          key={clip.sopInstanceUid}
          type="button"
          aria-current={at === model.index.value}
          onClick={() => model.select(at)}
        >
          <img src={clip.thumbnailUrl} alt="" loading="lazy" />
          <span>{t('viewer.clip', { number: at + 1 })}</span>
        </button>
      ))}
    </nav>
  );
}

function Stage({ model }: { model: ViewerModel }) {
  const screen = useSignal<Extent>({ width: 1, height: 1 });
  const box = useRef<HTMLDivElement>(null);
  useEffect(() => {
    const element = box.current!;
    const observer = new ResizeObserver(([entry]) => {
      const { width, height } = entry!.contentRect;
      screen.value = { width: Math.max(1, width), height: Math.max(1, height) };
    });
    observer.observe(element);
    return () => observer.disconnect();
  }, []);
  const hand = useHand(model, screen, box);
  return (
    <div ref={box} class={`screen ${model.tool.value}`} {...hand}>
      <Canvas model={model} screen={screen} />
      <Overlay model={model} screen={screen} />
      <Corners model={model} />
    </div>
  );
}

interface OnScreen {
  model: ViewerModel;
  screen: Signal<Extent>;
}

function Canvas({ model, screen }: OnScreen) {
  const canvas = useRef<HTMLCanvasElement>(null);
  useSignalEffect(() => {
    const clip = model.clip.value;
    const frame = model.frame.value;
    // Whatever of these changes, the picture is painted again.
    void [model.view.value, screen.value];
    if (!clip) return;
    const frames = model.frames(clip);
    const paint = (bitmap: ImageBitmap) => {
      // The page may have been left while the frame was on its way.
      if (!canvas.current || model.clip.peek() !== clip || model.frame.peek() !== frame) return;
      model.fault.value = null;
      // By what holds now: a frame that was long on its way must not undo a newer painting.
      const extent = screen.peek();
      draw(canvas.current, bitmap, extent, placement(extent, clip, model.view.peek()));
    };
    const ready = frames.ready(frame);
    if (ready) {
      paint(ready);
      return;
    }
    frames.decoded(frame).then(paint, (error: unknown) => {
      const ours = model.clip.peek() === clip && !(error instanceof DOMException && error.name === 'AbortError');
      if (ours) model.fault.value = error;
    });
  });
  const window = model.window.value;
  const { slope, intercept } = transfer(window);
  const clip = model.clip.value;
  const label = clip
    ? t('viewer.frame', { frame: model.frame.value, frames: clip.frames })
    : t('viewer.noImages');
  return (
    <>
      <svg width="0" height="0" aria-hidden="true" class="filters">
        <filter id="window" color-interpolation-filters="sRGB">
          <feComponentTransfer>
            <feFuncR type="linear" slope={slope} intercept={intercept} />
            <feFuncG type="linear" slope={slope} intercept={intercept} />
            <feFuncB type="linear" slope={slope} intercept={intercept} />
          </feComponentTransfer>
        </filter>
      </svg>
      <canvas ref={canvas} role="img" aria-label={`${t('viewer.title')}, ${label}`} class={isFull(window) ? '' : 'windowed'} />
    </>
  );
}

function draw(
  canvas: HTMLCanvasElement,
  bitmap: ImageBitmap,
  extent: Extent,
  place: { scale: number; left: number; top: number },
): void {
  const ratio = globalThis.devicePixelRatio || 1;
  const width = Math.round(extent.width * ratio);
  const height = Math.round(extent.height * ratio);
  if (canvas.width !== width) canvas.width = width;
  if (canvas.height !== height) canvas.height = height;
  const context = canvas.getContext('2d', { alpha: false });
  if (!context) return;
  context.setTransform(1, 0, 0, 1, 0, 0);
  context.fillStyle = '#000';
  context.fillRect(0, 0, width, height);
  context.setTransform(ratio * place.scale, 0, 0, ratio * place.scale, ratio * place.left, ratio * place.top);
  context.imageSmoothingQuality = 'high';
  context.drawImage(bitmap, 0, 0);
  canvas.dataset.painted = String(Number(canvas.dataset.painted ?? 0) + 1);
}

function Overlay({ model, screen }: OnScreen) {
  const clip = model.clip.value;
  if (!clip) return null;
  const place = placement(screen.value, clip, model.view.value);
  const lesion = model.onLesionFrame.value ? model.lesion.value : null;
  const box = model.box.value ? lesion?.box : null;
  const onFrame = model.drawn.value.filter(
    (line) => line.sopInstanceUid === clip.sopInstanceUid && line.frame === model.frame.value,
  );
  return (
    <svg class="overlay" aria-hidden="true" width={screen.value.width} height={screen.value.height}>
      <g transform={`matrix(${place.scale} 0 0 ${place.scale} ${place.left} ${place.top})`}>
        {lesion && model.heat.value && <Heat model={model} />}
        {box && (
          <g class="box">
            <rect x={box.x0} y={box.y0} width={box.x1 - box.x0} height={box.y1 - box.y0} />
            <text x={box.x0} y={box.y0 - 6 / place.scale} font-size={12 / place.scale}>
              {t('viewer.aiLabel')}
            </text>
          </g>
        )}
        {onFrame.map((line, at) => (
          <Caliper key={at} line={line} scale={place.scale} model={model} />
        ))}
      </g>
    </svg>
  );
}

function Heat({ model }: { model: ViewerModel }) {
  const image = useSignal<string | null>(null);
  const capture = model.heatCapture.value;
  useEffect(() => {
    if (!capture) return undefined;
    let url: string | null = null;
    let gone = false;
    model
      .frames(capture)
      .blob(1)
      .then((blob) => {
        if (gone) return;
        url = URL.createObjectURL(blob);
        image.value = url;
      })
      .catch((error: unknown) => {
        model.fault.value = error;
      });
    return () => {
      gone = true;
      if (url) URL.revokeObjectURL(url);
    };
  }, [capture]);
  const clip = model.clip.value;
  if (!image.value || !clip) return null;
  return (
    <image
      href={image.value}
      x={clip.read.x0}
      y={clip.read.y0}
      width={clip.read.x1 - clip.read.x0}
      height={clip.read.y1 - clip.read.y0}
      preserveAspectRatio="none"
      opacity={model.opacity.value}
    />
  );
}

function Caliper({ line, scale, model }: { line: Drawn; scale: number; model: ViewerModel }) {
  const length = lengthBetween(line.a, line.b, model.clip.value?.regions ?? []);
  const label =
    length.unit === 'mm'
      ? t('unit.mm', { value: shownNumber(length.value, 1) })
      : t('unit.px', { value: shownNumber(length.value, 0) });
  const arm = 5 / scale;
  return (
    <g class="caliper">
      <line x1={line.a.x} y1={line.a.y} x2={line.b.x} y2={line.b.y} />
      {[line.a, line.b].map((end, at) => (
        <path key={at} d={`M${end.x - arm} ${end.y}h${2 * arm}M${end.x} ${end.y - arm}v${2 * arm}`} />
      ))}
      <text x={line.b.x + 8 / scale} y={line.b.y - 6 / scale} font-size={14 / scale}>
        {label}
      </text>
    </g>
  );
}

function Corners({ model }: { model: ViewerModel }) {
  const clip = model.clip.value;
  if (!clip) return <p class="absent centre">{t('viewer.noImages')}</p>;
  const window = model.window.value;
  const heatShown = model.heat.value && model.onLesionFrame.value && model.heatCapture.value;
  return (
    <div class="corners">
      <span class="nw">{t('viewer.clip', { number: model.index.value + 1 })}</span>
      {heatShown && <span class="ne ai-note">{t('viewer.aiHeat')}</span>}
      <span class="sw mono">
        {t('viewer.levels', { width: Math.round(window.width), centre: Math.round(window.centre) })}
        {'  '}
        {t('viewer.zoom', { zoom: Math.round(model.view.value.zoom * 100) })}
      </span>
      <span class={clip.regions.length ? 'se' : 'se warn'}>
        {t(clip.regions.length ? 'viewer.calibrated' : 'viewer.uncalibrated')}
      </span>
      {model.fault.value !== null && (
        <p class="fault centre" role="alert">
          {t('viewer.frameFailed', { detail: explain(model.fault.value) })}
        </p>
      )}
    </div>
  );
}

function Controls({ model }: { model: ViewerModel }) {
  const clip = model.clip.value;
  if (!clip) return null;
  return (
    <div class="controls">
      {clip.frames > 1 && (
        <div class="cine">
          <button type="button" onClick={() => model.toggleCine()}>
            <kbd>Space</kbd> {t(model.playing.value ? 'viewer.pause' : 'viewer.play')}
          </button>
          <input
            type="range"
            min="1"
            max={clip.frames}
            value={model.frame.value}
            aria-label={t('viewer.position')}
            onInput={(event) => {
              model.pause();
              model.frame.value = event.currentTarget.valueAsNumber;
            }}
          />
          <span class="mono">{t('viewer.frame', { frame: model.frame.value, frames: clip.frames })}</span>
        </div>
      )}
      <div class="tools">
        <div class="segments" role="group" aria-label={t('viewer.tool')}>
          {TOOLS.map((tool) => (
            <button
              key={tool}
              type="button"
              aria-pressed={model.tool.value === tool}
              onClick={() => {
                model.tool.value = tool;
              }}
            >
              {t(`viewer.${tool}`)}
            </button>
          ))}
        </div>
        <button type="button" onClick={() => model.fit()}>
          <kbd>Z</kbd> {t('viewer.fit')}
        </button>
        {model.drawn.value.length > 0 && (
          <button
            type="button"
            onClick={() => {
              model.drawn.value = [];
            }}
          >
            {t('viewer.clear')}
          </button>
        )}
        <AiControls model={model} />
      </div>
    </div>
  );
}

function AiControls({ model }: { model: ViewerModel }) {
  if (!model.lesion.value) return null;
  return (
    <div class="ai-controls">
      <button
        type="button"
        aria-pressed={model.box.value}
        onClick={() => {
          model.box.value = !model.box.value;
        }}
      >
        <kbd>C</kbd> {t('viewer.box')}
      </button>
      <button
        type="button"
        aria-pressed={model.heat.value}
        disabled={!model.heatCapture.value}
        onClick={() => {
          model.heat.value = !model.heat.value;
        }}
      >
        <kbd>H</kbd> {t('viewer.heat')}
      </button>
      <input
        type="range"
        min="0"
        max="1"
        step="0.05"
        disabled={!model.heat.value}
        value={model.opacity.value}
        aria-label={t('viewer.heatOpacity')}
        onInput={(event) => {
          model.opacity.value = event.currentTarget.valueAsNumber;
        }}
      />
    </div>
  );
}

/** Pointer and wheel on the image. */
function useHand(model: ViewerModel, screen: Signal<Extent>, box: { current: HTMLDivElement | null }) {
  const grip = useRef<{ at: Point; panning: boolean } | null>(null);
  const at = (event: MouseEvent): Point => {
    const bounds = box.current!.getBoundingClientRect();
    return { x: event.clientX - bounds.left, y: event.clientY - bounds.top };
  };
  const onImage = (point: Point): Point | null => {
    const clip = model.clip.value;
    return clip ? toImage(point, placement(screen.value, clip, model.view.value)) : null;
  };

  useEffect(() => {
    const element = box.current!;
    const wheel = (event: WheelEvent) => {
      const clip = model.clip.value;
      if (!clip) return;
      event.preventDefault();
      const factor = Math.exp(-event.deltaY * 0.0015);
      model.view.value = zoomAt(model.view.value, factor, at(event), screen.value, clip);
    };
    element.addEventListener('wheel', wheel, { passive: false });
    return () => element.removeEventListener('wheel', wheel);
  }, []);

  const begin = (event: PointerEvent) => {
    const clip = model.clip.value;
    if (!clip) return;
    box.current!.setPointerCapture(event.pointerId);
    const panning = event.button !== PRIMARY_BUTTON || model.tool.value === 'pan';
    grip.current = { at: at(event), panning };
    const point = onImage(grip.current.at);
    if (!panning && model.tool.value === 'length' && point) {
      model.pause();
      const line = { sopInstanceUid: clip.sopInstanceUid, frame: model.frame.value, a: point, b: point };
      model.drawn.value = [...model.drawn.value, line];
    }
  };

  const move = (event: PointerEvent) => {
    if (!grip.current) return;
    const now = at(event);
    const dx = now.x - grip.current.at.x;
    const dy = now.y - grip.current.at.y;
    if (grip.current.panning) {
      const view = model.view.value;
      model.view.value = { ...view, panX: view.panX + dx, panY: view.panY + dy };
    } else if (model.tool.value === 'length') {
      const point = onImage(now);
      const line = model.drawn.value.at(-1);
      if (point && line) model.drawn.value = [...model.drawn.value.slice(0, -1), { ...line, b: point }];
    } else {
      model.window.value = dragged(model.window.value, dx, dy);
    }
    grip.current = { ...grip.current, at: now };
  };

  const end = () => {
    grip.current = null;
    // A click without a drag is no length.
    model.drawn.value = model.drawn.value.filter(
      (line) => Math.hypot(line.b.x - line.a.x, line.b.y - line.a.y) > 1,
    );
  };

  return {
    onPointerDown: begin,
    onPointerMove: move,
    onPointerUp: end,
    onPointerCancel: end,
    onDblClick: () => model.fit(),
    onContextMenu: (event: MouseEvent) => event.preventDefault(),
  };
}
