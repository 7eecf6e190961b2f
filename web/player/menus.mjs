// The player's menus: small panels over the bar, one open at a time, and the page of help.

import { clamp, make, next } from "./dom.mjs";
import { icon } from "./icons.mjs";
import { BACKGROUNDS, LOOPS, MODES, SPEEDS } from "./view.mjs";

/** Degrees of the number keys' sides. */
export const SIDES = { 1: 0, 2: 90, 3: 180, 4: 270 };
const SIDE_NAMES = { 1: "From the front", 2: "From the object's left", 3: "From behind", 4: "From the object's right" };

const HELP = [
  ["Drag", "turn around the object"],
  ["Right or Shift drag", "move the picture"],
  ["Wheel, pinch", "zoom towards the pointer"],
  ["Double-click", "centre this point"],
  ["Alt + click", "choose a point: trail, distances; again: not"],
  ["X", "no chosen points"],
  ["One finger, two", "turn; move and zoom"],
  ["Space", "play, pause"],
  ["← →", "one frame back, on"],
  ["Home, End", "first frame, last"],
  ["Shift + arrows", "turn around the object"],
  ["+ −", "nearer, farther"],
  ["F, 0", "the whole object; as filmed"],
  ["1 2 3 4", "front, left, back, right"],
  ["Shift + F", "full screen"],
  ["L", "loop, back and forth, once"],
  ["[ ]", "slower, faster"],
  ["M", "splats, points, ellipsoids"],
  ["B", "background"],
  ["V", "driving video"],
  ["C", "compare"],
  ["K", "record a key of the camera path"],
  ["P", "save the picture"],
  ["A", "in your room, where the device can"],
  ["O, drop files", "play them: one, two to compare, a sequence"],
  ["R", "save a film"],
  ["?", "this help"],
  ["Esc", "close"],
];

/**
 * @typedef {object} Does what the menus can ask for
 * @property {(part: object) => void} set a part of the view
 * @property {() => void} changed the view has been changed
 * @property {() => void} frameObject
 * @property {() => void} asFilmed
 * @property {(azimuth: number) => void} side
 * @property {() => void} addKey
 * @property {(key: import("./view.mjs").Key) => void} goTo
 * @property {() => void} playPath
 * @property {(path: boolean) => void} saveFilm
 * @property {() => void} reset
 */

export class Menus {
  /** @type {HTMLElement | null} */ #popup = null;
  /** @type {HTMLElement | null} */ #help = null;
  #root;
  #bar;
  #tools;
  #view;
  #does;

  /**
   * @param {HTMLElement} root what they lie in
   * @param {HTMLElement} bar what they lie above
   * @param {Record<string, HTMLButtonElement>} tools the buttons that open them
   * @param {() => any} view
   * @param {Does} does
   */
  constructor(root, bar, tools, view, does) {
    [this.#root, this.#bar, this.#tools, this.#view, this.#does] = [root, bar, tools, view, does];
  }

  get isOpen() {
    return Boolean(this.#popup || this.#help);
  }

  /** Whether an event fell into what is open or onto a button that opens something. @param {Event} event */
  meant(event) {
    return event
      .composedPath()
      .some((part) => part === this.#popup || part === this.#help || /** @type {any} */ (part).ariaHasPopup === "true");
  }

  close() {
    // The keys go on to the player, not into the void.
    if ([this.#popup, this.#help].some((part) => part?.matches(":focus-within"))) this.#root.focus({ preventScroll: true });
    this.#popup?.remove();
    this.#help?.remove();
    this.#popup = this.#help = null;
    for (const tool of Object.values(this.#tools)) tool.removeAttribute("aria-expanded");
  }

  /** Opens a menu, or closes it where it is open. @param {string} id */
  toggle(id) {
    const open = this.#popup?.dataset.id === id;
    this.close();
    if (!open) this.#open(id);
  }

  toggleHelp() {
    const open = Boolean(this.#help);
    this.close();
    if (open) return;
    const close = make("button", {
      class: "tool close",
      type: "button",
      "aria-label": "Close",
      title: "Close (Esc)",
      click: () => this.close(),
    });
    close.innerHTML = icon("close");
    const list = make("dl", {}, ...HELP.map(([key, does]) => make("div", {}, make("dt", {}, key), make("dd", {}, does))));
    this.#help = make(
      "div",
      { class: "help", role: "dialog", "aria-label": "Help" },
      make("h2", {}, "Mouse, fingers and keys"),
      close,
      list,
    );
    this.#root.append(this.#help);
    close.focus();
  }

  /** @param {string} id */
  #open(id) {
    const anchor = this.#tools[id].style.display === "none" ? this.#tools.more : this.#tools[id];
    const popup = make("div", { class: "popup", role: "menu", "data-id": id }, ...this.#lines(id));
    popup.addEventListener("keydown", (event) => {
      if (event.key !== "ArrowDown" && event.key !== "ArrowUp") return;
      event.preventDefault();
      event.stopPropagation();
      const all = /** @type {HTMLElement[]} */ ([...popup.querySelectorAll("button:not(:disabled), input")]);
      const now = all.find((element) => element.matches(":focus")) ?? all[0];
      next(all, now, event.key === "ArrowDown" ? 1 : -1).focus();
    });
    anchor.setAttribute("aria-expanded", "true");
    this.#popup = popup;
    this.#root.append(popup);
    popup.style.bottom = `${this.#bar.offsetHeight + 2}px`;
    popup.style.maxHeight = `${Math.max(60, this.#root.clientHeight - this.#bar.offsetHeight - 8)}px`;
    const right = this.#root.clientWidth - anchor.offsetLeft - anchor.offsetWidth;
    popup.style.right = `${clamp(right, 6, Math.max(6, this.#root.clientWidth - popup.offsetWidth - 6))}px`;
    const first = /** @type {HTMLElement | null} */ (
      popup.querySelector('[aria-checked="true"]') ?? popup.querySelector("button")
    );
    first?.focus({ preventScroll: true });
  }

  /** Changes something and fills the open menu anew. @param {string} id @param {() => void} act */
  #again(id, act) {
    return () => {
      act();
      this.#does.changed();
      this.close();
      this.#open(id);
    };
  }

  /** Closes the menu, then does it. @param {() => void} act */
  #then(act) {
    return () => {
      this.close();
      act();
    };
  }

  /**
   * A line of a menu.
   * @param {string} text
   * @param {() => void} click
   * @param {{on?: boolean, mark?: string, more?: Node[], disabled?: boolean}} [options] on: of a choice; mark: an icon's name
   */
  #line(text, click, { on, mark, more = [], disabled = false } = {}) {
    const sign = make("span", { class: "mark" });
    if (on || mark) sign.innerHTML = icon(on ? "check" : /** @type {string} */ (mark));
    const role = on == null ? "menuitem" : "menuitemradio";
    return make(
      "button",
      { class: "tool", type: "button", role, "aria-checked": on, disabled, click },
      sign,
      make("span", {}, text),
      ...more,
    );
  }

  /** Lines of a choice. @param {string} title @param {string} name @param {[any, string, Node?][]} values */
  #choice(title, name, values) {
    const now = this.#view()[name];
    const lines = values.map(([value, text, sample]) =>
      this.#line(
        text,
        this.#then(() => this.#does.set({ [name]: value })),
        { on: value === now, more: sample ? [make("i"), sample] : [] },
      ),
    );
    return [make("h2", {}, title), ...lines];
  }

  /** @param {string} text @param {boolean} on @param {() => void} act */
  #box(text, on, act) {
    const field = make("input", { type: "checkbox", change: act });
    field.checked = on;
    return make("label", {}, field, text);
  }

  /** @param {string} id @returns {Node[]} */
  #lines(id) {
    switch (id) {
      case "loop":
        return this.#choice("At the end", "loop", Object.entries(LOOPS));
      case "speed":
        return this.#choice(
          "Speed",
          "speed",
          SPEEDS.map((speed) => [speed, `${speed}×`]),
        );
      case "mode":
        return this.#choice("Drawn as", "mode", Object.entries(MODES));
      case "background":
        return this.#backgrounds();
      case "frame":
        return this.#places();
      case "keys":
        return this.#keys();
      case "record": {
        const film = this.#line(
          "The clip, seen from here",
          this.#then(() => this.#does.saveFilm(false)),
          { mark: "record" },
        );
        const none = this.#view().keys.length < 2;
        const path = this.#line(
          "Along the camera path",
          this.#then(() => this.#does.saveFilm(true)),
          { mark: "keys", disabled: none },
        );
        return [make("h2", {}, "Save a film (WebM)"), film, path];
      }
      default:
        return this.#folded();
    }
  }

  #backgrounds() {
    const samples = Object.entries(BACKGROUNDS).map(([value, text]) => {
      const sample = make("span", { class: value === "transparent" ? "swatch checker" : "swatch" });
      if (value !== "transparent") sample.style.background = value;
      return /** @type {[string, string, Node]} */ ([value, text, sample]);
    });
    const now = this.#view().background;
    const field = make("input", {
      type: "color",
      "aria-label": "Any colour",
      input: () => this.#does.set({ background: field.value }),
    });
    field.value = now.startsWith("#") ? now : "#336699";
    return [
      ...this.#choice("Background", "background", samples),
      make("label", {}, make("span", { class: "mark" }), "Any colour", make("i"), field),
    ];
  }

  #places() {
    const sides = Object.entries(SIDES).map(([key, azimuth]) =>
      this.#line(
        /** @type {any} */ (SIDE_NAMES)[key],
        this.#then(() => this.#does.side(azimuth)),
      ),
    );
    return [
      make("h2", {}, "Look at"),
      this.#line(
        "The whole object",
        this.#then(() => this.#does.frameObject()),
        { mark: "frame" },
      ),
      this.#line(
        "As filmed",
        this.#then(() => this.#does.asFilmed()),
        { mark: "film" },
      ),
      ...sides,
      this.#line(
        "Reset everything",
        this.#then(() => this.#does.reset()),
        { mark: "close" },
      ),
    ];
  }

  #keys() {
    const { keys, pathLoop, moments } = this.#view();
    const { set } = this.#does;
    const again = (/** @type {() => void} */ act) => this.#again("keys", act);
    const lines = [
      make("h2", {}, "Camera path"),
      this.#line(
        "Record this view",
        again(() => this.#does.addKey()),
        { mark: "record" },
      ),
    ];
    if (!keys.length)
      return [...lines, make("p", {}, "Move the camera and record again: the camera then flies from view to view.")];
    const list = keys.map((/** @type {any} */ key, /** @type {number} */ i) => {
      const at = moments ? ` at ${Math.round(100 * (key.scene_time ?? 0))} %` : "";
      const label = `Delete key ${i + 1}`;
      const without = again(() => set({ keys: keys.filter((/** @type {any} */ other) => other !== key) }));
      const remove = make("button", { class: "tool", type: "button", "aria-label": label, title: label, click: without });
      remove.innerHTML = icon("close");
      return make(
        "li",
        {},
        this.#line(`Key ${i + 1}${at}`, () => this.#does.goTo(key), { mark: "keys" }),
        remove,
      );
    });
    return [
      ...lines,
      make("ul", { class: "keys" }, ...list),
      this.#box(
        "Back to the first key",
        pathLoop,
        again(() => set({ pathLoop: !pathLoop })),
      ),
      this.#box(
        "At the moments recorded",
        moments,
        again(() => set({ moments: !moments })),
      ),
      this.#line(
        "Play the path",
        this.#then(() => this.#does.playPath()),
        { mark: "play", disabled: keys.length < 2 },
      ),
      this.#line(
        "Delete all keys",
        again(() => set({ keys: [] })),
        { mark: "close" },
      ),
    ];
  }

  /** What did not fit into the bar. */
  #folded() {
    const view = this.#view();
    const marks = { loop: view.loop, mode: view.mode };
    const folded = Object.entries(this.#tools).filter(([, tool]) => tool.dataset.folded === "true");
    return folded.map(([id, tool]) => {
      const label = tool.title.replace(/ \([^)]*\)$/, "");
      const act = tool.ariaHasPopup ? () => this.toggle(id) : this.#then(() => tool.click());
      return this.#line(label, act, { mark: /** @type {any} */ (marks)[id] ?? id, disabled: tool.disabled });
    });
  }
}
