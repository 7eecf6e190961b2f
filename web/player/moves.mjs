// Where the camera is, and how it moves: at once, gliding to another place, or along the recorded path.

import { clamp } from "./dom.mjs";
import { pathAt } from "./path.mjs";

/** @typedef {import("./lens.mjs").Camera} Camera */
/** @typedef {import("./view.mjs").State} State */
/** @typedef {{start: number, seconds: number}} Way when it began, in milliseconds, and how long it takes */

/** Milliseconds of a movement that was asked for. */
const GLIDE = 260;

export class Moves {
  /** @type {Camera | null} */ camera = null;
  /** The whole object from the front. @type {Camera | null} */ home = null;
  /** @type {{from: Camera, to: Camera, start: number} | null} */ #glide = null;
  /** @type {Way | null} */ #path = null;
  #on;

  /** @param {{moved: () => void, changed: () => void}} on `moved` where the user moves it, `changed` where it is sent away */
  constructor(on) {
    this.#on = on;
  }

  get gliding() {
    return Boolean(this.#glide);
  }

  /** Whether it is on its way along the path. */
  get following() {
    return Boolean(this.#path);
  }

  /** Where it will be when it has arrived. */
  get goal() {
    return this.#glide?.to ?? this.camera;
  }

  /** Puts it somewhere, with nobody told. @param {Camera | null} camera */
  put(camera) {
    this.#glide = null;
    this.camera = camera;
  }

  /** @param {Camera} camera */
  look(camera) {
    if (!this.camera) return;
    this.put(camera);
    this.#path = null;
    this.#on.moved();
  }

  /** Moves there in a moment, the shorter way round. @param {Camera} to */
  glideTo(to) {
    if (!this.camera) return;
    const from = this.camera;
    const turn = ((((to.azimuth - from.azimuth) % 360) + 540) % 360) - 180;
    this.#glide = { from, to: { ...to, azimuth: from.azimuth + turn }, start: performance.now() };
    this.#path = null;
    this.#on.changed();
  }

  /** Looks at the whole object from where the camera is. */
  frameObject() {
    if (this.home && this.camera)
      this.glideTo({ ...this.home, azimuth: this.camera.azimuth, elevation: this.camera.elevation });
  }

  /** @param {number} azimuth degrees, 0 = as filmed */
  side(azimuth) {
    if (this.home && this.camera)
      this.glideTo({ ...this.camera, azimuth: this.home.azimuth + azimuth, elevation: this.home.elevation });
  }

  /** Goes on gliding. @param {number} now */
  glide(now) {
    if (!this.#glide) return;
    const { from, to, start } = this.#glide;
    const share = clamp((now - start) / GLIDE, 0, 1);
    if (share === 1) {
      this.put({ ...to, azimuth: ((to.azimuth + 540) % 360) - 180 });
      return;
    }
    const s = share * share * (3 - 2 * share);
    const mix = (/** @type {number} */ a, /** @type {number} */ b) => a + (b - a) * s;
    this.camera = {
      ...to,
      target: from.target.map((value, i) => mix(value, to.target[i])),
      distance: Math.exp(mix(Math.log(from.distance), Math.log(to.distance))),
      azimuth: mix(from.azimuth, to.azimuth),
      elevation: mix(from.elevation, to.elevation),
      roll: mix(from.roll, to.roll),
      fov: mix(from.fov, to.fov),
      shift: from.shift.map((value, i) => mix(value, to.shift[i])),
    };
  }

  /** Starts along the path. @param {number} seconds of the whole of it */
  startPath(seconds) {
    this.#path = { start: performance.now(), seconds };
  }

  leavePath() {
    this.#path = null;
  }

  /**
   * Goes on along the path, which ends by itself.
   * @param {number} now
   * @param {State} state
   * @returns {number} moment of the clip
   */
  follow(now, state) {
    const { start, seconds } = /** @type {Way} */ (this.#path);
    const share = clamp((now - start) / 1000 / seconds, 0, 1);
    const [camera, moment] = pathAt(state, share);
    this.put(camera);
    if (share === 1) this.#path = null;
    return moment;
  }
}
