// What the player shows: as the state that it keeps, and as the JSON that a workflow keeps.

import { clamp } from "./dom.mjs";
import { MOST } from "./marks.mjs";
import { pathTimes } from "./path.mjs";

/**
 * What the player shows, as JSON: what a workflow keeps and the node draws.
 * @typedef {object} View
 * @property {1} version
 * @property {object} [camera] LOAD3D_CAMERA; aspect = the picture's
 * @property {number} [time] moment of the clip, 0 to 1
 * @property {string} [background] "transparent" or "#rrggbb"
 * @property {"splats" | "points" | "ellipsoids"} [mode]
 * @property {"loop" | "pingpong" | "once"} [loop]
 * @property {number} [speed] 1 = as filmed
 * @property {number} [split] share of the picture that the first of two clips has
 * @property {boolean} [compare] whether the second clip is shown
 * @property {boolean} [film] whether the driving video is shown
 * @property {number[]} [marks] chosen Gaussians of the first clip, which leave trails
 * @property {boolean} [moments] whether the path's keys hold their moments of the clip
 * @property {{version: 1, loop: boolean, keys: Key[]}} [trajectory] the recorded camera path
 */
/** @typedef {{time: number, scene_time: number | null, camera: object}} Key */
/** The view without its camera and its moment, which move. @typedef {ReturnType<typeof fresh>} State */

export const LOOPS = { loop: "Loop", pingpong: "Back and forth", once: "Play once" };
export const MODES = { splats: "Splats", points: "Points", ellipsoids: "Ellipsoids" };
export const SPEEDS = [0.1, 0.25, 0.5, 0.75, 1, 1.5, 2, 3, 4];
export const BACKGROUNDS = { transparent: "Transparent", "#ffffff": "White", "#808080": "Grey", "#000000": "Black" };

/** What a new player shows. */
export function fresh() {
  return {
    background: "transparent",
    mode: "splats",
    loop: "loop",
    speed: 1,
    split: 0.5,
    compare: true,
    film: true,
    moments: false,
    marks: /** @type {number[]} */ ([]),
    keys: /** @type {Key[]} */ ([]),
    pathLoop: false,
  };
}

/** Takes over what a view gives; what it does not give stays. @param {State} state @param {Partial<View>} view */
export function take(state, view) {
  const { trajectory } = view;
  const given = /** @type {any} */ ({ split: /** @type {any} */ (view).wiper, ...view }); // of version 0.1: wiper
  for (const name of /** @type {const} */ (["background", "mode", "loop", "speed", "split", "compare", "film", "moments"]))
    if (typeof given[name] === typeof state[name]) /** @type {any} */ (state)[name] = given[name];
  if (!(state.mode in MODES)) state.mode = "splats";
  if (!(state.loop in LOOPS)) state.loop = "loop";
  if (!/^#[0-9a-f]{6}$/i.test(state.background)) state.background = "transparent";
  state.speed = clamp(state.speed, 0.1, 4);
  state.split = clamp(state.split, 0, 1);
  if (Array.isArray(view.marks))
    state.marks = view.marks.filter((index) => Number.isInteger(index) && index >= 0).slice(0, MOST);
  if (trajectory?.keys)
    [state.keys, state.pathLoop] = [trajectory.keys.filter((key) => key?.camera?.position), !!trajectory.loop];
}

/** The JSON of a state at a moment of the clip, without a camera. @param {State} state @param {number} time @returns {View} */
export function viewOf({ keys, pathLoop, ...rest }, time) {
  const times = pathTimes(keys.length, pathLoop);
  const trajectory = { version: 1, loop: pathLoop, keys: keys.map((key, i) => ({ ...key, time: times[i] })) };
  return /** @type {View} */ ({ version: 1, time: round(time), ...rest, trajectory });
}

/** The background's red, green, blue and opacity, 0 to 1. @param {State} state @returns {[number, number, number, number]} */
export function backgroundOf({ background }) {
  if (background === "transparent") return [0, 0, 0, 0];
  const value = parseInt(background.slice(1), 16);
  return [(value >> 16) / 255, ((value >> 8) & 255) / 255, (value & 255) / 255, 1];
}

/** @param {number} value */
export const round = (value) => Math.round(value * 1e5) / 1e5;

/** Numbers of a JSON value at five decimals: steadier to compare, shorter to keep. @template T @param {T} value @returns {T} */
export function rounded(value) {
  return JSON.parse(JSON.stringify(value, (_, part) => (typeof part === "number" ? round(part) : part)));
}
