// The camera's path through recorded keys: as core/trajectory.py has it, for cameras with a level horizon.

import { fromInfo } from "./lens.mjs";

/** @typedef {import("./lens.mjs").Camera} Camera */
/** @typedef {import("./view.mjs").Key} Key */
/** @typedef {import("./view.mjs").State} State */

const RADIANS = Math.PI / 180;

/** Times of keys spread evenly over the film. @param {number} count @param {boolean} loop */
export function pathTimes(count, loop) {
  return Array.from({ length: count }, (_, i) => i / Math.max(loop ? count : count - 1, 1));
}

/**
 * Curves through values at the keys. Speeds there are the slopes of the parabolas through three neighbours, limited to three
 * times the slower of the two segments beside it, so that nothing moves between two equal keys.
 */
class Curve {
  #closed;
  #spans;
  #segment;
  #after;
  #u;

  /** @param {number} count keys @param {boolean} loop @param {number} share of the film, 0 to 1 */
  constructor(count, loop, share) {
    this.#closed = loop || count === 1;
    const knots = pathTimes(count, loop);
    const ends = this.#closed ? [...knots, 1] : knots;
    this.#spans = ends.slice(1).map((end, i) => end - ends[i]);
    this.#segment = Math.max(
      0,
      Math.min(
        this.#spans.length - 1,
        ends.findLastIndex((end) => end <= share),
      ),
    );
    this.#after = (this.#segment + 1) % count;
    this.#u = Math.max(0, Math.min(1, (share - ends[this.#segment]) / this.#spans[this.#segment]));
  }

  /** @param {number[][]} values one a key @returns {number[]} */
  vectors(values) {
    return this.#moved(values[this.#segment], this.#chords(values));
  }

  /** Degrees, each the shorter way to the next. @param {number[]} values @returns {number} */
  angles(values) {
    const chords = this.#chords(values.map((value) => [value])).map(([turn]) => [180.006 - modulo(180.006 - turn, 360)]);
    return this.#moved([values[this.#segment]], chords)[0];
  }

  /** Length of the way straight from key to key. @param {number[][]} points */
  length(points) {
    return this.#chords(points).reduce((sum, chord) => sum + norm(chord), 0);
  }

  /** @param {number[][]} values */
  #chords(values) {
    return this.#spans.map((_, i) => values[(i + 1) % values.length].map((value, k) => value - values[i][k]));
  }

  /** @param {number[]} start @param {number[][]} chords */
  #moved(start, chords) {
    const u = this.#u;
    const [first, last] = [
      this.#speed(chords, this.#segment),
      this.#speed(chords, this.#closed ? this.#after : this.#segment + 1),
    ];
    const third = this.#spans[this.#segment] / 3;
    return start.map((value, k) => {
      const [a, b] = [first[k] * third, last[k] * third];
      const middle = chords[this.#segment][k] - a - b;
      return value + a * (1 - (1 - u) ** 3) + middle * u * u * (3 - 2 * u) + b * u ** 3;
    });
  }

  /** At a key. @param {number[][]} chords @param {number} key @returns {number[]} */
  #speed(chords, key) {
    const slope = (/** @type {number} */ i) => chords[i].map((value) => value / this.#spans[i]);
    const inside = (/** @type {number} */ before, /** @type {number} */ after) => {
      const [left, right, p, q] = [slope(before), slope(after), this.#spans[before], this.#spans[after]];
      return { speed: left.map((value, k) => (q * value + p * right[k]) / (p + q)), left, right };
    };
    const count = chords.length;
    if (this.#closed) return limited(inside((key + count - 1) % count, key % count));
    if (key > 0 && key < count) return limited(inside(key - 1, key));
    const end = slope(Math.min(key, count - 1));
    if (count === 1) return end;
    const beside = key === 0 ? inside(0, 1) : inside(count - 2, count - 1);
    return limited({ speed: end.map((value, k) => (3 * value - beside.speed[k]) / 2), left: end, right: end });
  }
}

/** @param {number[]} vector */
const norm = (vector) => Math.hypot(...vector);

/** @param {number} value @param {number} by */
const modulo = (value, by) => ((value % by) + by) % by;

/** @param {{speed: number[], left: number[], right: number[]}} at a key, with the segments' slopes beside it */
function limited({ speed, left, right }) {
  const share = Math.min(1, (3 * Math.min(norm(left), norm(right))) / Math.max(norm(speed), 1e-300));
  return speed.map((value) => value * share);
}

/** From the target towards the camera. @param {number} azimuth @param {number} elevation */
function back(azimuth, elevation) {
  const [a, e] = [azimuth * RADIANS, elevation * RADIANS];
  return [Math.cos(e) * Math.sin(a), Math.sin(e), Math.cos(e) * Math.cos(a)];
}

/** The camera at a share of the film. @param {Key[]} keys @param {boolean} loop @param {number} share @returns {Camera} */
export function pathCamera(keys, loop, share) {
  const cameras = keys.map((key) => fromInfo(key.camera));
  const curve = new Curve(keys.length, loop, share);
  const azimuth = curve.angles(cameras.map((camera) => camera.azimuth));
  const number = (/** @type {(camera: Camera) => number} */ of) => curve.vectors(cameras.map((camera) => [of(camera)]))[0];
  const elevation = number((camera) => camera.elevation);
  const roll = number((camera) => camera.roll);
  const distance = Math.exp(number((camera) => Math.log(camera.distance)));
  const focal = number((camera) => -Math.log(Math.tan((camera.fov / 2) * RADIANS)));
  const targets = cameras.map((camera) => camera.target);
  const positions = cameras.map((camera) =>
    back(camera.azimuth, camera.elevation).map((value, i) => camera.target[i] + camera.distance * value),
  );
  let target;
  // What travels less leads: round an object, or turning where it stands.
  if (curve.length(targets) <= curve.length(positions)) target = curve.vectors(targets);
  else {
    const away = back(azimuth, elevation);
    target = curve.vectors(positions).map((value, i) => value - distance * away[i]);
  }
  return { ...cameras[0], target, distance, azimuth, elevation, roll, fov: (2 * Math.atan(Math.exp(-focal))) / RADIANS };
}

/** The clip's moment there: evenly from key to key. @param {Key[]} keys @param {boolean} loop @param {number} share */
export function pathMoment(keys, loop, share) {
  const times = pathTimes(keys.length, loop);
  const given = keys.map((key, i) => [times[i], key.scene_time ?? 0]);
  const first = given[0];
  const last = given[given.length - 1];
  // A path that comes back lets the clip run on to its end and start again, unless time stands still in all of it.
  if (loop && given.some(([, moment]) => moment !== first[1]))
    given.push([1, first[1] + Math.max(Math.ceil(last[1] - first[1] - 1e-9), 0)]);
  const after = given.findIndex(([time]) => time > share);
  if (after === -1) return wrapped(given[given.length - 1][1]);
  const [[t0, m0], [t1, m1]] = [given[Math.max(after - 1, 0)], given[after]];
  return wrapped(t1 > t0 ? m0 + ((share - t0) / (t1 - t0)) * (m1 - m0) : m0);
}

/** @param {number} moment */
const wrapped = (moment) => (moment > 1 ? moment - Math.ceil(moment) + 1 : moment);

/**
 * Camera and moment of the clip on a view's path.
 * @param {State} state
 * @param {number} share of the path, 0 to 1
 * @returns {[Camera, number]}
 */
export function pathAt({ keys, pathLoop, moments }, share) {
  return [pathCamera(keys, pathLoop, share), moments ? pathMoment(keys, pathLoop, share) : share];
}

/** Seconds of a view's path: long enough for its keys' moments. @param {State} state @param {number} seconds of the clip */
export function pathSeconds({ keys, moments }, seconds) {
  return Math.max(seconds, moments ? 1.5 * (keys.length - 1) : 0, 2);
}
