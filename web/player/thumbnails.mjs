// Small pictures over the timeline, where the pointer is on it: of the driving video, or of the object where there is none. The
// object's are drawn one at a time, when they are asked for, and kept until it is seen otherwise.

import { clamp, make } from "./dom.mjs";
import { steps } from "./playback.mjs";

/** @typedef {import("./stream.mjs").Clip} Clip */

/** Height of a picture in CSS pixels, its width in heights, and half of the timeline's thumb. */
const HEIGHT = 72,
  NARROWEST = 0.5,
  WIDEST = 2,
  THUMB = 6;
/** Pictures that are kept; milliseconds until one that cannot be drawn now is tried again. */
const KEPT = 300,
  PATIENCE = 100;

export class Thumbnails {
  #box;
  #canvas = make("canvas", { "aria-hidden": "true" });
  #label = make("span");
  #bar;
  #line;
  #on;
  /** @type {Map<number, ImageData>} by frame */ #kept = new Map();
  #seen = ""; // how the kept ones see the object
  #shown = -1; // frame under the pointer
  #drawing = false;

  /**
   * @param {HTMLElement} bar what the timeline lies in
   * @param {HTMLInputElement} line the timeline
   * @param {object} on
   * @param {() => Clip | null} on.clip
   * @param {() => string} on.seen changes where the object is seen otherwise; empty where there is nothing to be seen
   * @param {() => number} on.aspect width / height of the picture
   * @param {(frame: number, width: number, height: number) => Promise<ImageData | null>} on.draw
   * @param {AbortSignal} signal ends its listening
   */
  constructor(bar, line, on, signal) {
    [this.#bar, this.#line, this.#on] = [bar, line, on];
    this.#box = make("div", { class: "thumbnail", hidden: true }, this.#canvas, this.#label);
    bar.append(this.#box);
    const listen = (/** @type {string} */ type, /** @type {(event: any) => void} */ handle) =>
      line.addEventListener(type, handle, { signal });
    for (const type of ["pointerdown", "pointermove"]) listen(type, (event) => this.#show(event.clientX));
    for (const type of ["pointerleave", "pointercancel", "blur"]) listen(type, () => this.hide());
    listen("pointerup", (event) => {
      if (event.pointerType !== "mouse") this.hide();
    });
  }

  hide() {
    this.#box.hidden = true;
    this.#shown = -1;
  }

  /** @param {number} x of the pointer, CSS pixels of the page */
  #show(x) {
    const clip = this.#on.clip(),
      line = this.#line.getBoundingClientRect();
    if (!clip || clip.frames < 2 || !line.width) return this.hide();
    const scale = line.width / this.#line.offsetWidth; // the host zooms its nodes
    const share = clamp((x - line.left - THUMB * scale) / (line.width - 2 * THUMB * scale), 0, 1);
    const frame = Math.floor(share * steps(clip) + 1e-4) % clip.frames;
    const picture = clip.pictures[Math.min(frame, clip.header.pictures.length - 1)];
    const aspect = clamp(picture ? picture.width / picture.height : this.#on.aspect(), NARROWEST, WIDEST);
    const width = Math.round(HEIGHT * aspect),
      sharp = Math.min(devicePixelRatio, 2);
    const size = [Math.round(width * sharp), Math.round(HEIGHT * sharp)];
    if (this.#canvas.width !== size[0] || this.#canvas.height !== size[1]) [this.#canvas.width, this.#canvas.height] = size;
    this.#canvas.style.width = `${width}px`;
    this.#box.hidden = false;
    this.#label.textContent = `${frame + 1} / ${clip.frames}  ${(frame / clip.fps).toFixed(1)} s`;
    const middle = (x - line.left) / scale + this.#line.offsetLeft;
    const left = clamp(middle - this.#box.offsetWidth / 2, 2, Math.max(2, this.#bar.clientWidth - this.#box.offsetWidth - 2));
    this.#box.style.left = `${left}px`;
    this.#shown = frame;
    if (clip.header.pictures.length) {
      if (picture) this.#fit(picture);
    } else if (!this.#put()) this.#draw();
  }

  /** @param {ImageBitmap} picture */
  #fit(picture) {
    const { width, height } = this.#canvas,
      context = this.#context();
    const scale = Math.min(width / picture.width, height / picture.height);
    const [w, h] = [picture.width * scale, picture.height * scale];
    context.drawImage(picture, (width - w) / 2, (height - h) / 2, w, h);
  }

  /** Draws the frame under the pointer, and the one where it is by then, until it is there. */
  async #draw() {
    if (this.#drawing) return;
    this.#drawing = true;
    while (!this.#put()) {
      const frame = this.#shown,
        seen = this.#seen,
        { width, height } = this.#canvas;
      const picture = await this.#on.draw(frame, width, height);
      if (!picture) await new Promise((done) => setTimeout(done, PATIENCE));
      else if (seen === this.#seen) {
        if (this.#kept.size >= KEPT) this.#kept.clear();
        this.#kept.set(frame, picture);
      }
    }
    this.#drawing = false;
  }

  /** Shows the picture that is wanted. @returns {boolean} whether it is there, or none is wanted */
  #put() {
    if (this.#shown < 0) return true;
    const seen = this.#on.seen() + this.#canvas.width;
    if (seen !== this.#seen) {
      this.#kept.clear();
      this.#seen = seen;
      this.#context();
    }
    const kept = this.#kept.get(this.#shown);
    if (kept) this.#context().putImageData(kept, 0, 0);
    return Boolean(kept);
  }

  /** An empty canvas. */
  #context() {
    const context = /** @type {CanvasRenderingContext2D} */ (this.#canvas.getContext("2d"));
    context.clearRect(0, 0, this.#canvas.width, this.#canvas.height);
    return context;
  }
}
