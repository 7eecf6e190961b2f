// The picture's place: its canvas and its size, and the graphics context that it has while somebody can see it.

import { acquire, giveUp } from "./contexts.mjs";
import { clamp, make } from "./dom.mjs";
import { Renderer } from "./renderer.mjs";

/** @typedef {import("./contexts.mjs").Holder} Holder */
/** @typedef {import("./interface.mjs").Interface} Interface */
/** @typedef {import("./renderer.mjs").Shot} Shot */
/** @typedef {import("./stream.mjs").Clip} Clip */

/** Milliseconds to wait for a lost context. */
const PATIENCE = 5000;
/** Longest side of the drawing, in pixels: sharper costs more than it shows. */
const SHARPEST = 2048;

/** @implements {Holder} */
export class Stage {
  #canvas = /** @type {HTMLCanvasElement | null} */ (null);
  /** @type {Renderer | null} */ #renderer = null;
  #size = { width: 0, height: 0, scale: 1 };
  #onScreen = false;
  #asleep = false;
  #lost = 0; // timer
  #ui;
  #clips;
  #on;
  #signal;

  /**
   * @param {Interface} ui
   * @param {(Clip | null)[]} clips the player's
   * @param {object} on
   * @param {() => Shot | null} on.shot what is to be seen now; null where there is nothing yet
   * @param {() => void} on.draw a new picture is due
   * @param {() => void} on.loading the line of progress is free again
   * @param {(message: string) => void} on.failed
   * @param {AbortSignal} signal the player's end
   */
  constructor(ui, clips, on, signal) {
    this.#ui = ui;
    this.#clips = clips;
    this.#on = on;
    this.#signal = signal;
    const { view, root } = ui.parts;
    const resized = new ResizeObserver(() => this.resize());
    resized.observe(view);
    resized.observe(root);
    const seen = new IntersectionObserver(([entry]) => {
      this.#onScreen = entry.isIntersecting;
      this.wake(false);
      on.draw();
    });
    seen.observe(ui.element);
    root.addEventListener("pointerdown", () => this.wake(true), { signal, capture: true });
    root.addEventListener("pointerenter", () => this.resize(), { signal });
    signal.addEventListener("abort", () => {
      resized.disconnect();
      seen.disconnect();
      clearTimeout(this.#lost);
      this.#free();
    });
  }

  get canvas() {
    return this.#canvas;
  }

  /** What draws; null while it holds no context. */
  get renderer() {
    return this.#renderer;
  }

  /** Numbers of the last drawing, see Renderer.stats; null while it holds no context. */
  get stats() {
    return this.#renderer?.stats ?? null;
  }

  get aspect() {
    const { width, height } = this.#size;
    return width && height ? width / height : 1;
  }

  shown() {
    return this.#onScreen && !document.hidden && this.#size.width > 0 && this.#size.height > 0;
  }

  /** Makes the context where there is none and one is to be had. @param {boolean} insist */
  wake(insist) {
    if (this.#signal.aborted || !this.#clips[0] || !this.shown()) return;
    if (this.#renderer) {
      acquire(this, false);
      return;
    }
    if (!acquire(this, insist)) {
      this.#ui.say("Click to show", "asleep");
      return;
    }
    const canvas = make("canvas", { role: "img", "aria-label": "The object" });
    this.#renderer = new Renderer(canvas, {
      onOrder: () => this.#on.draw(),
      onLost: () => {
        this.#ui.progress("The graphics card is busy, waiting …");
        // A browser that has dropped it for those of others does not give it back.
        this.#lost = setTimeout(() => this.release(), PATIENCE);
      },
      onRestored: () => {
        clearTimeout(this.#lost);
        this.#on.loading();
        this.#on.draw();
      },
    });
    this.#canvas?.remove();
    this.#canvas = canvas;
    this.#ui.parts.view.prepend(canvas);
    if (this.#asleep) this.#ui.say("");
    this.#asleep = false;
    this.#size.width = 0;
    this.resize();
    this.#clips.forEach((clip, slot) => this.setClip(slot, clip));
    this.#on.draw();
  }

  /** Gives the context up; the last picture stays. */
  release() {
    if (!this.#renderer || !this.#canvas) return;
    this.#renderer.pixels(); // shows the last picture again: between two tasks a browser may drop what was drawn
    const still = make("canvas", {
      role: "img",
      "aria-label": "The object",
      width: this.#canvas.width,
      height: this.#canvas.height,
    });
    if (still.width && still.height) still.getContext("2d")?.drawImage(this.#canvas, 0, 0);
    this.#canvas.replaceWith(still);
    this.#canvas = still;
    this.#free();
    this.#asleep = true;
    this.#on.loading();
    if (this.shown()) this.#ui.say("Click to show", "asleep");
  }

  resize() {
    const { view, root, stage } = this.#ui.parts;
    stage.classList.toggle("tall", root.clientWidth < 1.1 * stage.clientHeight);
    this.#ui.fold();
    const [w, h] = [view.clientWidth, view.clientHeight];
    const zoomed = view.getBoundingClientRect().width / (view.offsetWidth || 1) || 1;
    const scale = Math.min(devicePixelRatio * clamp(zoomed, 0.5, 4), SHARPEST / Math.max(w, h, 1));
    const before = this.#size;
    if (w === before.width && h === before.height && Math.abs(scale / before.scale - 1) < 0.05) return;
    this.#size = { width: w, height: h, scale };
    if (!w || !h) return;
    this.#renderer?.resize(Math.max(1, Math.round(w * scale)), Math.max(1, Math.round(h * scale)));
    this.wake(false);
    // In the same task: a resized canvas is empty until it is drawn, which would flicker.
    this.paint();
    this.#on.draw();
  }

  /** @param {number} slot @param {Clip | null} clip */
  setClip(slot, clip) {
    this.#renderer?.setClip(/** @type {0 | 1} */ (slot), clip);
  }

  /** @param {number} slot @param {number} index */
  frameArrived(slot, index) {
    this.#renderer?.frameArrived(slot, index);
  }

  /** The point of the object there, if any. @param {number} x @param {number} y CSS pixels of the picture */
  pick(x, y) {
    const { width, height } = this.#size;
    const canvas = this.#canvas;
    if (!this.#renderer || !canvas) return null;
    return this.#renderer.pick((x * canvas.width) / width, (y * canvas.height) / height);
  }

  /** A small picture of the first clip, see Renderer.thumbnail. @param {Shot} shot @param {number} width @param {number} height */
  async thumbnail(shot, width, height) {
    return (await this.#renderer?.thumbnail(shot, width, height)) ?? null;
  }

  /** What is to be seen now; null where nothing can be drawn. */
  shot() {
    return this.#renderer ? this.#on.shot() : null;
  }

  paint() {
    const shot = this.shot();
    if (!shot) return;
    try {
      this.#renderer?.draw(shot);
    } catch (error) {
      this.#free();
      this.#on.failed(/** @type {Error} */ (error).message);
    }
  }

  /** Paints in the exact order. @returns {Promise<boolean>} whether it is on the canvas */
  async paintSorted() {
    const shot = this.shot();
    return Boolean(shot && (await this.#renderer?.drawSorted(shot)));
  }

  #free() {
    giveUp(this);
    this.#renderer?.dispose();
    this.#renderer = null;
  }
}
