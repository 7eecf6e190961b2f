// Mouse, pen, touch and wheel on the picture: orbit, pan, zoom, focus.

/** @typedef {import("./lens.mjs").Camera} Camera */

/** Degrees of a turn a pixel of the way dragged. */
const TURN = 0.4;
/** Two taps are one double tap within this many milliseconds and pixels. */
const TAP_MS = 320;
const TAP_PX = 24;
const RADIANS = Math.PI / 180;
const LOWEST = 1e-3;
const HIGHEST = 1e3;

/** Right and up of the camera's picture in the world. @param {Camera} camera */
function axes({ azimuth, elevation, roll = 0 }) {
  const [sa, ca, se, ce] = [
    Math.sin(azimuth * RADIANS),
    Math.cos(azimuth * RADIANS),
    Math.sin(elevation * RADIANS),
    Math.cos(elevation * RADIANS),
  ];
  const [sr, cr] = [Math.sin(roll * RADIANS), Math.cos(roll * RADIANS)];
  const right = [ca, 0, -sa];
  const up = [-se * sa, ce, -se * ca];
  return {
    right: right.map((value, i) => cr * value - sr * up[i]),
    up: up.map((value, i) => cr * value + sr * right[i]),
  };
}

/** @param {Camera} camera @param {number} dx pixels @param {number} dy pixels @returns {Camera} */
export function orbited(camera, dx, dy) {
  const elevation = Math.max(-89.9, Math.min(89.9, camera.elevation + TURN * dy));
  return { ...camera, azimuth: ((camera.azimuth - TURN * dx + 540) % 360) - 180, elevation };
}

/**
 * The camera moved in its picture's plane, so that the target's depth follows the pointer.
 * @param {Camera} camera
 * @param {number} dx pixels
 * @param {number} dy pixels
 * @param {number} side the picture's shorter one, in pixels
 * @returns {Camera}
 */
export function panned(camera, dx, dy, side) {
  const { right, up } = axes(camera);
  const unit = (2 * camera.distance * Math.tan((camera.fov / 2) * RADIANS)) / side;
  return { ...camera, target: camera.target.map((value, i) => value - unit * (dx * right[i] - dy * up[i])) };
}

/**
 * Nearer (scale < 1) or farther; what the pointer is on, at the target's depth, stays under it.
 * @param {Camera} camera
 * @param {number} scale
 * @param {number} x pixels right of the picture's centre
 * @param {number} y pixels below it
 * @param {number} side the picture's shorter one, in pixels
 * @returns {Camera}
 */
export function zoomed(camera, scale, x, y, side) {
  const distance = Math.max(LOWEST, Math.min(HIGHEST, camera.distance * scale));
  const kept = 1 - distance / camera.distance;
  const [sx, sy] = camera.shift ?? [0, 0];
  return { ...panned(camera, (side * sx - x) * kept, (side * sy - y) * kept, side), distance };
}

/**
 * @typedef {object} Target
 * @property {() => Camera} camera
 * @property {(camera: Camera) => void} move
 * @property {(x: number, y: number) => void} focus pixels from the picture's left and top
 * @property {() => void} settle the movement has ended
 */

/**
 * Listens on the element until the signal fires.
 * @param {HTMLElement} element
 * @param {Target} target
 * @param {AbortSignal} signal
 */
export function control(element, target, signal) {
  /** @type {Map<number, {x: number, y: number}>} */
  const pointers = new Map();
  let panning = false;
  let moved = 0;
  let tap = { time: -Infinity, x: 0, y: 0 };
  let wheeling = 0;

  /** Pixels of the element, however the page around it is scaled. @param {{clientX: number, clientY: number}} event */
  const place = (event) => {
    const box = element.getBoundingClientRect();
    const scale = element.offsetWidth / box.width || 1;
    return { x: (event.clientX - box.left) * scale, y: (event.clientY - box.top) * scale };
  };
  const middle = () => {
    const all = [...pointers.values()];
    const [a, b] = [all[0], all.at(-1)];
    return { x: (a.x + b.x) / 2, y: (a.y + b.y) / 2, apart: Math.hypot(a.x - b.x, a.y - b.y) };
  };
  const listen = (/** @type {string} */ type, /** @type {(event: any) => void} */ handle) =>
    element.addEventListener(type, handle, { signal, passive: false });

  listen("pointerdown", (event) => {
    if (event.pointerType === "mouse" && pointers.size) return;
    element.setPointerCapture(event.pointerId);
    pointers.set(event.pointerId, place(event));
    panning = event.button === 1 || event.button === 2 || event.shiftKey;
    if (pointers.size === 1) moved = 0;
    if (event.button === 1) event.preventDefault();
  });
  listen("pointermove", (event) => {
    const before = pointers.get(event.pointerId);
    if (!before) return;
    const from = middle();
    const now = place(event);
    pointers.set(event.pointerId, now);
    const [dx, dy] = [now.x - before.x, now.y - before.y];
    moved += Math.hypot(dx, dy);
    const camera = target.camera();
    const { offsetWidth: width, offsetHeight: height } = element;
    const side = Math.min(width, height);
    if (pointers.size > 1) {
      const to = middle();
      const shifted = panned(camera, to.x - from.x, to.y - from.y, side);
      const scale = from.apart > 0 && to.apart > 0 ? from.apart / to.apart : 1;
      target.move(zoomed(shifted, scale, to.x - width / 2, to.y - height / 2, side));
    } else target.move(panning ? panned(camera, dx, dy, side) : orbited(camera, dx, dy));
  });
  const release = (/** @type {PointerEvent} */ event) => {
    const last = pointers.get(event.pointerId);
    if (!last) return;
    pointers.delete(event.pointerId);
    if (moved > 2) {
      target.settle();
      return;
    }
    if (event.type !== "pointerup" || event.pointerType !== "touch") return;
    if (event.timeStamp - tap.time < TAP_MS && Math.hypot(last.x - tap.x, last.y - tap.y) < TAP_PX) {
      target.focus(last.x, last.y);
      tap = { time: -Infinity, x: 0, y: 0 };
    } else tap = { time: event.timeStamp, ...last };
  };
  listen("pointerup", release);
  listen("pointercancel", release);
  listen("lostpointercapture", release);
  listen("contextmenu", (event) => event.preventDefault());
  listen("dblclick", (event) => {
    if (event.sourceCapabilities?.firesTouchEvents) return;
    const { x, y } = place(event);
    target.focus(x, y);
  });
  listen("wheel", (event) => {
    event.preventDefault();
    event.stopPropagation();
    const lines = event.deltaMode === 1 ? 16 : event.deltaMode === 2 ? 240 : 1;
    const speed = event.ctrlKey ? 0.01 : 0.0015; // a trackpad's pinch comes as a wheel with ctrl, in small steps
    const scale = Math.exp(Math.max(-100, Math.min(100, event.deltaY * lines)) * speed);
    const { x, y } = place(event);
    const { offsetWidth: width, offsetHeight: height } = element;
    target.move(zoomed(target.camera(), scale, x - width / 2, y - height / 2, Math.min(width, height)));
    clearTimeout(wheeling);
    wheeling = setTimeout(target.settle, 200);
  });
  signal.addEventListener("abort", () => clearTimeout(wheeling));
}
