// What the keys do.

import { orbited, zoomed } from "./controls.mjs";
import { clamp, next } from "./dom.mjs";
import { SIDES } from "./menus.mjs";
import { steps } from "./playback.mjs";
import { BACKGROUNDS, LOOPS, MODES, SPEEDS } from "./view.mjs";

/**
 * @typedef {object} Keyed what the keys can ask for beside what bar and menus can
 * @property {() => void} close what is open, or stops what is being saved
 * @property {(camera: import("./lens.mjs").Camera) => void} look
 * @property {(id: string) => void} menu
 * @property {() => void} help
 * @property {() => void} fullScreen
 */
/** @typedef {import("./interface.mjs").Does & Keyed} Does */

/**
 * @typedef {object} Now what the keys act on
 * @property {import("./stream.mjs").Clip} clip
 * @property {import("./lens.mjs").Camera} camera
 * @property {number} time of the clip
 * @property {import("./view.mjs").State} state
 */

/** Does what a key asks for. @param {KeyboardEvent} event @param {Does} does @param {Now | null} now */
export function press(event, does, now) {
  const target = /** @type {HTMLElement} */ (event.composedPath()[0]);
  const { key } = event;
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  event.stopPropagation();
  if (key === "Escape") {
    does.close();
    return;
  }
  if (target.matches("input:not([type=range])") || (target.matches("button") && (key === " " || key === "Enter"))) return;
  const act = action(key, event.shiftKey, does, now);
  if (!act) return;
  event.preventDefault();
  act();
}

/**
 * What a key does.
 * @param {string} key
 * @param {boolean} shift
 * @param {Does} does
 * @param {Now | null} now
 * @returns {(() => void) | null}
 */
function action(key, shift, does, now) {
  if (key === "?") return () => does.help();
  if (shift && key.toLowerCase() === "f") return () => does.fullScreen();
  if (!shift && key.toLowerCase() === "o") return () => does.open();
  if (!now) return null;
  const { clip, camera, time, state } = now;
  const turn = (/** @type {number} */ dx, /** @type {number} */ dy) => () => {
    does.look(orbited(camera, dx, dy));
    does.changed();
  };
  const nearer = (/** @type {number} */ scale) => () => {
    does.look(zoomed(camera, scale, 0, 0, 1));
    does.changed();
  };
  if (shift && key.startsWith("Arrow"))
    return { ArrowLeft: turn(25, 0), ArrowRight: turn(-25, 0), ArrowUp: turn(0, 25), ArrowDown: turn(0, -25) }[key] ?? null;
  const frame = time * steps(clip);
  const last = clip.frames - 1;
  const to = (/** @type {number} */ index) => () => does.seek(clamp(index, 0, last) / steps(clip));
  const speed = (/** @type {number} */ step) => () => {
    const nearest = SPEEDS.reduce((a, b) => (Math.abs(b - state.speed) < Math.abs(a - state.speed) ? b : a));
    does.set({ speed: SPEEDS[clamp(SPEEDS.indexOf(nearest) + step, 0, SPEEDS.length - 1)] });
  };
  if (key in SIDES) return () => does.side(/** @type {any} */ (SIDES)[key]);
  return (
    {
      " ": () => does.toggle(),
      arrowleft: to(Math.ceil(frame - 1e-3) - 1),
      arrowright: to(Math.floor(frame + 1e-3) + 1),
      home: to(0),
      end: to(last),
      "+": nearer(0.9),
      "=": nearer(0.9),
      "-": nearer(1 / 0.9),
      f: () => does.frameObject(),
      0: () => does.asFilmed(),
      l: () => does.set({ loop: next(Object.keys(LOOPS), state.loop) }),
      m: () => does.set({ mode: next(Object.keys(MODES), state.mode) }),
      b: () => does.set({ background: next(Object.keys(BACKGROUNDS), state.background) }),
      a: () => does.augment(),
      v: () => does.set({ film: !state.film }),
      c: () => does.set({ compare: !state.compare }),
      k: () => does.addKey(),
      x: () => does.set({ marks: [] }),
      p: () => does.savePicture(),
      r: () => does.menu("record"),
      "[": speed(-1),
      "]": speed(1),
    }[key.toLowerCase()] ?? null
  );
}
