// The player for pages of others: an element, or a function that fills one.
//
//   <script type="module" src="anchor4d-player/embed.mjs"></script>
//   <anchor4d-player src="creature.a4d" style="height: 400px"></anchor4d-player>
//
//   import { mount } from "anchor4d-player";
//   const player = mount(element, { source: "creature.a4d" });

import { EVENTS } from "./messages.mjs";
import { Player } from "./player.mjs";

export { fromBookmark, keepBookmark, toBookmark } from "./bookmark.mjs";
export { answer } from "./messages.mjs";
export { Player };

/**
 * A player that fills an element; `dispose()` it when the element goes.
 * @param {HTMLElement} element with a size of its own
 * @param {import("./player.mjs").Options} [options]
 */
export function mount(element, options = {}) {
  return new Player(element, options);
}

/** Attributes that are parts of the view, and what they are. */
const VIEW = { time: Number, speed: Number, background: String, mode: String, loop: String };

/**
 * Attributes: src, compare (a second clip), labels (two, separated by |), name (of saved files), paused (present: stands still),
 * time, speed, background, mode, loop. Properties: player, view. Events: those of the player; they bubble.
 */
export class PlayerElement extends HTMLElement {
  static observedAttributes = ["src", "compare", ...Object.keys(VIEW)];
  /** @type {Player | null} */ player = null;

  connectedCallback() {
    if (this.player) return;
    const style = getComputedStyle(this);
    if (style.display === "inline") this.style.display = "block";
    if (style.position === "static") this.style.position = "relative";
    const labels = this.getAttribute("labels")?.split("|");
    const name = this.getAttribute("name");
    const autoplay = this.hasAttribute("paused") ? { autoplay: false } : {};
    const player = new Player(this, { view: this.#asked(), ...(labels && { labels }), ...(name && { name }), ...autoplay });
    this.player = player;
    for (const event of EVENTS)
      player.addEventListener(event, (from) => {
        const { detail } = /** @type {CustomEvent} */ (from);
        this.dispatchEvent(new CustomEvent(event, { detail, bubbles: true, composed: true }));
      });
    this.#load();
  }

  disconnectedCallback() {
    this.player?.dispose();
    this.player = null;
  }

  /** @param {string} name */
  attributeChangedCallback(name) {
    if (!this.player) return;
    if (name in VIEW) this.player.setView(this.#asked([name]));
    else this.#load();
  }

  /** What is shown, as JSON. */
  get view() {
    return this.player?.getView() ?? {};
  }

  set view(view) {
    this.player?.setView(view);
  }

  play() {
    this.player?.play();
  }

  pause() {
    this.player?.pause();
  }

  /** @param {number} time 0 to 1 */
  seek(time) {
    this.player?.seek(time);
  }

  #load() {
    const sources = [this.getAttribute("src"), this.getAttribute("compare")].filter((source) => source !== null && source !== "");
    if (sources.length) this.player?.load(/** @type {string[]} */ (sources));
  }

  /** The view that the attributes ask for. @param {string[]} names */
  #asked(names = Object.keys(VIEW)) {
    const view = /** @type {any} */ ({});
    for (const name of names) {
      const text = this.getAttribute(name);
      if (text !== null) view[name] = /** @type {any} */ (VIEW)[name](text);
    }
    return view;
  }
}

if (!customElements.get("anchor4d-player")) customElements.define("anchor4d-player", PlayerElement);
