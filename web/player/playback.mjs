// The moment of the clip that is shown, and its course while it plays.

import { clamp } from "./dom.mjs";

/** @typedef {import("./stream.mjs").Clip} Clip */
/** @typedef {import("./view.mjs").State} State */

/** Frame intervals from time 0 to time 1: a clip that loops comes back to its first frame. @param {Clip} clip */
export function steps(clip) {
  return Math.max(1, clip.loop ? clip.frames : clip.frames - 1);
}

export class Playback {
  /** Of the clip, 0 to 1; more than 1 while a clip that does not loop stands on its last frame. */
  time = 0;
  /** A moment to stand still at when the clip is there. @type {number | null} */
  wanted = null;
  playing = false;
  #forward = true;
  #clips;

  /** @param {(Clip | null)[]} clips the player's, the first of which has the time */
  constructor(clips) {
    this.#clips = clips;
  }

  get #clip() {
    return this.#clips[0];
  }

  /** The moment shown: a clip that does not loop stands on its last frame for as long as on any other. */
  get tau() {
    return Math.min(1, this.time);
  }

  /** Seconds of the clip once through. */
  get seconds() {
    return this.#clip ? this.#clip.frames / this.#clip.fps : 1;
  }

  /** Whether there is anything to play. */
  get moves() {
    return Boolean(this.#clip && this.#clip.frames > 1);
  }

  /** The moment in a clip's frames, as far as they are there. @param {Clip} clip */
  position(clip) {
    return Math.min(this.tau * steps(clip), clip.ready < clip.frames ? clip.ready - 1 : steps(clip));
  }

  /** Frame of a clip that is shown, from 0. @param {Clip} clip */
  frame(clip) {
    const frame = Math.floor(this.tau * steps(clip) + 1e-4);
    return clip.loop ? frame % clip.frames : frame;
  }

  /** @param {State} state */
  start({ loop }) {
    if (loop === "once" && this.time >= 1) this.time = 0;
    [this.playing, this.wanted] = [true, null];
  }

  stop() {
    [this.playing, this.wanted] = [false, null];
  }

  /** Stands still at a moment. @param {number} time 0 to 1 */
  seek(time) {
    this.stop();
    this.time = clamp(time, 0, 1);
  }

  /** A moment that somebody chose is stood still at; the start is where playing begins. @param {number} time 0 to 1 */
  want(time) {
    this.time = clamp(time, 0, 1);
    this.wanted = this.time || null;
  }

  /** Back to the start. */
  reset() {
    [this.time, this.wanted, this.#forward] = [0, null, true];
  }

  /**
   * Plays on.
   * @param {number} seconds that have passed
   * @param {State} state
   * @returns {boolean} whether the end of what is played once has been reached
   */
  advance(seconds, { loop, speed, film }) {
    const clip = this.#clip;
    if (!clip) return false;
    const step = (seconds * speed * clip.fps) / steps(clip);
    let time = this.time + (this.#forward ? step : -step);
    if (loop === "pingpong") {
      if (time >= 1) [time, this.#forward] = [Math.max(0, 2 - time), false];
      else if (time <= 0) [time, this.#forward] = [Math.min(1, -time), true];
    } else {
      this.#forward = true;
      if (loop === "once" && time >= 1) {
        this.time = 1;
        return true;
      }
      time %= clip.frames / steps(clip);
    }
    // What has not come yet is waited for; the driving video comes first, the object then stands on its last frame.
    const there = film ? Math.max(clip.ready, clip.pictures.length) : clip.ready;
    this.time = there < clip.frames ? clamp(time, 0, Math.max(0, there - 1) / steps(clip)) : time;
    return false;
  }
}
