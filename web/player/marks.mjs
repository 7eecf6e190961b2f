// Chosen points of the object: they stay on their Gaussians, leave trails, and the distances between them are written.

import { makeView, view } from "./camera.mjs";

/** @typedef {import("./stream.mjs").Clip} Clip */

const SVG = "http://www.w3.org/2000/svg";
export const MOST = 16;
const COLORS = ["#3b82f6", "#f59e0b", "#10b981", "#ef4444", "#a855f7", "#06b6d4", "#f472b6", "#84cc16"];
const NEAR = 0.01;

/**
 * Where a Gaussian is, world units.
 * @param {Clip} clip @param {number} index @param {number} position in frames, from 0; between two while it moves
 */
export function placeOf(clip, index, position) {
  const last = clip.ready - 1;
  const first = Math.min(Math.max(0, Math.floor(position)), last);
  const after = first < last ? first + 1 : clip.loop && clip.ready === clip.frames ? 0 : last;
  const share = clip.continuous ? Math.min(Math.max(0, position - first), 1) : 0;
  const [a, b] = [clip.poses[first], clip.poses[after]];
  return [0, 1, 2].map((k) => clip.low[k] + clip.step[k] * (a[4 * index + k] * (1 - share) + b[4 * index + k] * share));
}

/** The Gaussian nearest to a point. @param {Clip} clip @param {number[]} point @param {number} position in frames */
export function nearest(clip, point, position) {
  let [best, least] = [0, Infinity];
  const pose = clip.poses[Math.min(Math.max(0, Math.round(position)), clip.ready - 1)];
  for (let i = 0; i < clip.count; i++) {
    let squares = 0;
    for (let k = 0; k < 3; k++) squares += (clip.low[k] + clip.step[k] * pose[4 * i + k] - point[k]) ** 2;
    if (squares < least) [best, least] = [i, squares];
  }
  return best;
}

/**
 * The points and the distances from each to the next.
 * @param {Clip | null} clip @param {number[]} marks @param {number} position in frames
 */
export function measured(clip, marks, position) {
  const kept = clip?.ready ? marks.filter((index) => index < clip.count) : [];
  const points = kept.map((index) => ({ index, position: placeOf(/** @type {Clip} */ (clip), index, position) }));
  const distances = points
    .slice(1)
    .map((point, i) => Math.hypot(...point.position.map((value, k) => value - points[i].position[k])));
  return { points, distances };
}

export class Marks {
  #svg = document.createElementNS(SVG, "svg");
  #view = makeView();

  /** @param {HTMLElement} place the picture's */
  constructor(place) {
    this.#svg.setAttribute("class", "marks");
    place.append(this.#svg);
  }

  /**
   * Draws them over a picture.
   * @param {any} camera the renderer's
   * @param {Clip | null} clip
   * @param {number[]} marks
   * @param {number} position in frames
   */
  show(camera, clip, marks, position) {
    const svg = this.#svg;
    if (!marks.length || !clip?.ready || !camera) {
      if (svg.firstChild) svg.replaceChildren();
      return;
    }
    const [width, height] = [svg.clientWidth, svg.clientHeight];
    if (!width || !height) return;
    const { worldToCamera: m, fx, fy, cx, cy } = view(camera, width, height, this.#view);
    const pixel = (/** @type {number[]} */ [x, y, z]) => {
      const depth = m[8] * x + m[9] * y + m[10] * z + m[11];
      if (depth < NEAR) return null;
      const u = (fx * (m[0] * x + m[1] * y + m[2] * z + m[3])) / depth + cx;
      const v = (fy * (m[4] * x + m[5] * y + m[6] * z + m[7])) / depth + cy;
      return [u, v];
    };
    const parts = /** @type {SVGElement[]} */ ([]);
    const part = (/** @type {string} */ kind, /** @type {Record<string, string | number>} */ attributes, text = "") => {
      const element = document.createElementNS(SVG, kind);
      for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, String(value));
      element.textContent = text;
      parts.push(element);
    };
    const { points, distances } = measured(clip, marks, position);
    points.forEach(({ index }, i) => {
      const places = clip.poses.map((_, frame) => pixel(placeOf(clip, index, frame)));
      if (clip.loop && clip.ready === clip.frames) places.push(places[0]);
      const trail = places.filter((place) => place !== null).map((place) => place.map((value) => value.toFixed(1)).join(","));
      part("polyline", { points: trail.join(" "), stroke: COLORS[i % COLORS.length], class: "trail" });
    });
    const seen = points.map(({ position: place }) => pixel(place));
    distances.forEach((distance, i) => {
      const [a, b] = [seen[i], seen[i + 1]];
      if (!a || !b) return;
      part("line", { x1: a[0], y1: a[1], x2: b[0], y2: b[1], class: "measure" });
      part("text", { x: (a[0] + b[0]) / 2, y: (a[1] + b[1]) / 2 - 4, class: "measure" }, distance.toPrecision(3));
    });
    seen.forEach((place, i) => {
      if (place) part("circle", { cx: place[0], cy: place[1], r: 4, fill: COLORS[i % COLORS.length] });
    });
    svg.replaceChildren(...parts);
  }
}
