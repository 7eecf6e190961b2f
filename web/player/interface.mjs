// What the player is made of on the page: the picture's place, the timeline, the bar of tools and what they show.

import { clamp, make } from "./dom.mjs";
import { icon } from "./icons.mjs";
import { Menus } from "./menus.mjs";
import { STYLE } from "./style.mjs";

/** @typedef {import("./stream.mjs").Clip} Clip */
/** @typedef {import("./playback.mjs").Playback} Playback */
/** @typedef {import("./view.mjs").State} State */

/**
 * @typedef {object} Plays what the bar can ask for beside what the menus can
 * @property {() => void} toggle plays or pauses
 * @property {(time: number) => void} seek
 * @property {() => void} savePicture
 * @property {() => void} augment puts the object into the user's room, or takes it out again
 * @property {() => void} open lets the user choose files
 * @property {(event: KeyboardEvent) => void} key
 */
/** @typedef {import("./menus.mjs").Does & Plays} Does */

/** Buttons in the order in which they keep their place in a narrow bar; the rest fold into the menu. */
const KEPT = [
  "full",
  "film",
  "compare",
  "background",
  "mode",
  "loop",
  "speed",
  "frame",
  "keys",
  "picture",
  "record",
  "ar",
  "open",
  "help",
];

export class Interface {
  /** @type {HTMLElement} */ element;
  /** @type {Record<string, any>} */ parts = {};
  /** @type {Menus} */ menus;
  #tools = /** @type {Record<string, HTMLButtonElement>} */ ({});
  #shadow;
  #state;
  #does;
  #signal;
  #shownPicture = -1;

  /**
   * @param {HTMLElement} element what it fills
   * @param {State} state what is to be shown
   * @param {Does} does
   * @param {AbortSignal} signal ends its listening
   */
  constructor(element, state, does, signal) {
    this.element = element;
    this.#state = state;
    this.#does = does;
    this.#signal = signal;
    this.#shadow = element.shadowRoot ?? element.attachShadow({ mode: "open" });
    this.#build();
    this.menus = new Menus(this.parts.root, this.parts.bar, this.#tools, () => state, does);
    this.#listen();
    this.#dragSplit();
    this.#watchTheme();
  }

  remove() {
    this.#shadow.replaceChildren();
  }

  // ---------------------------------------------------------------------------------------------------- building

  #build() {
    const p = this.parts;
    const does = this.#does;
    const state = this.#state;
    const tool = (/** @type {string} */ id, /** @type {string} */ label, /** @type {() => void} */ click, menu = false) => {
      const button = make("button", { class: "tool", type: "button", "data-id": id, "aria-label": label, title: label, click });
      if (menu) button.setAttribute("aria-haspopup", "true");
      this.#tools[id] = button;
      return button;
    };
    const opens = (/** @type {string} */ id, /** @type {string} */ label) => tool(id, label, () => this.menus.toggle(id), true);
    p.filmCanvas = make("canvas", { role: "img", "aria-label": "The driving video" });
    p.film = make("div", { class: "film", hidden: true }, p.filmCanvas, make("span", { class: "tag left" }, "Driving video"));
    p.labelA = make("span", { class: "tag left", hidden: true });
    p.labelB = make("span", { class: "tag right", hidden: true });
    p.split = make("div", {
      class: "split",
      hidden: true,
      role: "slider",
      tabindex: 0,
      "aria-label": "Border between the two objects",
      "aria-valuemin": 0,
      "aria-valuemax": 100,
      title: "Drag: more of the one or of the other",
    });
    p.note = make("div", { class: "note", hidden: true, role: "status" });
    p.progress = make("div", { class: "note small", hidden: true, role: "status" });
    p.view = make("div", { class: "view checker" }, p.labelA, p.labelB, p.split, p.progress, p.note);
    p.stage = make("div", { class: "stage" }, p.film, p.view);
    p.line = make("input", {
      class: "time-line",
      type: "range",
      min: 0,
      max: 1,
      step: "any",
      value: 0,
      "aria-label": "Time",
      disabled: true,
    });
    p.frame = make("span");
    p.seconds = make("small");
    p.time = make("span", { class: "time" }, p.frame, p.seconds);
    p.row = make(
      "div",
      { class: "row", role: "toolbar", "aria-label": "Player" },
      tool("play", "Play (Space)", () => does.toggle()),
      p.time,
      make("span", { class: "space" }),
      opens("loop", "Loop (L)"),
      opens("speed", "Speed ([ and ])"),
      opens("mode", "How it is drawn (M)"),
      opens("background", "Background (B)"),
      tool("film", "Driving video (V)", () => does.set({ film: !state.film })),
      tool("compare", "Compare (C)", () => does.set({ compare: !state.compare })),
      opens("frame", "Look at (F, 0 to 4)"),
      opens("keys", "Camera path (K)"),
      tool("picture", "Save the picture (P)", () => does.savePicture()),
      opens("record", "Save a film (R)"),
      tool("ar", "In your room (A)", () => does.augment()),
      tool("open", "Open files (O)", () => does.open()),
      tool("help", "Help (?)", () => this.menus.toggleHelp()),
      tool("full", "Full screen (Shift + F)", () => this.fullScreen()),
      opens("more", "More"),
    );
    p.bar = make("div", { class: "bar" }, p.line, p.row);
    p.root = make("div", { class: "root", tabindex: 0, role: "group", "aria-label": "4D player" }, p.stage, p.bar);
    this.#shadow.replaceChildren(make("style", {}, STYLE), p.root);
    for (const id of ["frame", "keys", "picture", "record", "ar", "open", "help", "more", "film", "compare", "background"])
      this.#tools[id].innerHTML = icon(id);
    this.#tools.ar.dataset.gone = "true";
  }

  #listen() {
    const { root, view, line } = this.parts;
    const signal = this.#signal;
    line.addEventListener("input", () => this.#does.seek(Number(line.value)), { signal });
    // The page must not take what is meant for the player: the host pans, selects, runs and deletes on these.
    for (const type of ["pointerdown", "mousedown", "touchstart", "wheel", "dblclick", "contextmenu", "keyup"])
      root.addEventListener(type, (/** @type {Event} */ event) => event.stopPropagation(), { signal, passive: true });
    root.addEventListener(
      "pointerdown",
      (/** @type {Event} */ event) => {
        if (!this.menus.meant(event)) this.menus.close();
        if (event.composedPath().includes(view)) this.focus();
      },
      { signal, capture: true },
    );
    root.addEventListener("keydown", (/** @type {KeyboardEvent} */ event) => this.#does.key(event), { signal });
    document.addEventListener(
      "pointerdown",
      (event) => {
        if (!event.composedPath().includes(this.element)) this.menus.close();
      },
      { signal, capture: true },
    );
  }

  #dragSplit() {
    const { split, view } = this.parts;
    const signal = this.#signal;
    const listen = (/** @type {string} */ type, /** @type {(event: any) => void} */ handle) =>
      split.addEventListener(type, handle, { signal });
    listen("pointerdown", (event) => {
      event.stopPropagation();
      split.setPointerCapture(event.pointerId);
    });
    listen("pointermove", (event) => {
      if (!split.hasPointerCapture(event.pointerId)) return;
      event.stopPropagation();
      const box = view.getBoundingClientRect();
      this.#does.set({ split: clamp((event.clientX - box.left) / box.width, 0, 1) });
    });
    listen("dblclick", (event) => {
      event.stopPropagation();
      this.#does.set({ split: 0.5 });
    });
    listen("keydown", (event) => {
      const step = { ArrowLeft: -0.05, ArrowRight: 0.05 }[/** @type {string} */ (event.key)];
      if (!step) return;
      event.preventDefault();
      event.stopPropagation();
      this.#does.set({ split: clamp(this.#state.split + step, 0, 1) });
    });
  }

  #watchTheme() {
    const theme = matchMedia("(prefers-color-scheme: dark)");
    theme.addEventListener("change", () => this.#theme(), { signal: this.#signal });
    // The host changes its theme by style and class of the document's root.
    const host = new MutationObserver(() => this.#theme());
    host.observe(document.documentElement, { attributes: true, attributeFilter: ["class", "style"] });
    host.observe(document.body, { attributes: true, attributeFilter: ["class", "style"] });
    this.#signal.addEventListener("abort", () => host.disconnect());
    this.#theme();
  }

  #theme() {
    // ComfyUI's canvas nodes put their widgets into the page later: until then the page's own colours count.
    const place = this.element.isConnected ? this.element : document.body;
    const given = getComputedStyle(place).getPropertyValue("--comfy-menu-bg").trim();
    let dark = matchMedia("(prefers-color-scheme: dark)").matches;
    if (given) {
      const probe = make("span", { style: `color: ${given}` });
      this.#shadow.append(probe);
      const [r, g, b] = getComputedStyle(probe)
        .color.match(/[\d.]+/g)
        ?.map(Number) ?? [0, 0, 0];
      probe.remove();
      dark = 0.3 * r + 0.59 * g + 0.11 * b < 128;
    }
    this.element.toggleAttribute("data-dark", dark);
  }

  // ---------------------------------------------------------------------------------------------------- showing

  /** Brings every part in line with the view. @param {(Clip | null)[]} clips @param {string[]} labels of the two clips */
  arrange([clip, other], [a, b]) {
    const p = this.parts;
    const t = this.#tools;
    const { background, mode, loop, speed, split, film, compare } = this.#state;
    const pictures = clip?.header.pictures.length ?? 0;
    p.view.classList.toggle("checker", background === "transparent");
    p.film.hidden = !(pictures && film);
    p.film.style.display = p.film.hidden ? "none" : "";
    this.#shownPicture = -1;
    for (const part of [p.labelA, p.labelB, p.split]) part.hidden = !(other && compare);
    [p.labelA.textContent, p.labelB.textContent] = [a, b];
    p.split.style.left = `${100 * split}%`;
    p.split.setAttribute("aria-valuenow", String(Math.round(100 * split)));
    t.loop.innerHTML = icon(loop);
    t.mode.innerHTML = icon(mode);
    t.speed.textContent = `${speed}×`;
    t.full.innerHTML = icon(document.fullscreenElement === this.element ? "shrink" : "full");
    t.film.setAttribute("aria-pressed", String(film));
    t.compare.setAttribute("aria-pressed", String(compare));
    for (const id of ["frame", "keys", "picture", "record", "ar"]) t[id].disabled = !clip;
    t.film.dataset.gone = String(!pictures);
    t.compare.dataset.gone = String(!other);
    this.fold();
  }

  /** Shows a tool that not every device has, or hides it. @param {string} id @param {boolean} here */
  offer(id, here) {
    this.#tools[id].dataset.gone = String(!here);
    this.fold();
  }

  /** Puts the tools that do not fit into the menu. */
  fold() {
    const { row, seconds } = this.parts;
    const width = row.clientWidth;
    if (!width) return;
    const wanted = KEPT.filter((id) => this.#tools[id].dataset.gone !== "true");
    const each = (/** @type {string} */ id) => (id === "speed" ? 40 : 29);
    seconds.hidden = width < 200;
    const room = width - 29 - (width < 200 ? 60 : 110);
    const all = wanted.reduce((sum, id) => sum + each(id), 0);
    let left = all <= room ? Infinity : room - 29;
    let full = false;
    for (const id of KEPT) {
      const tool = this.#tools[id];
      const gone = !wanted.includes(id);
      if (!gone && !full && each(id) <= left) left -= each(id);
      else if (!gone) full = true;
      tool.dataset.folded = String(!gone && full);
      tool.style.display = gone || full ? "none" : "";
    }
    this.#tools.more.style.display = full ? "" : "none";
  }

  /** @param {string} text @param {"" | "error" | "asleep"} [kind] */
  say(text, kind = "") {
    const { note } = this.parts;
    note.hidden = !text;
    note.className = `note ${kind}`;
    note.setAttribute("role", kind === "error" ? "alert" : "status");
    note.textContent = text;
  }

  /** A line at the picture's foot. @param {string} text @param {number} [milliseconds] for how long; for good where 0 */
  progress(text, milliseconds = 0) {
    const { progress } = this.parts;
    progress.hidden = !text;
    progress.textContent = text;
    clearTimeout(progress.timer);
    if (milliseconds) progress.timer = setTimeout(() => (progress.hidden = true), milliseconds);
  }

  /** @param {boolean} busy whether something plays @param {boolean} can whether there is anything to play */
  showPlaying(busy, can) {
    const { play } = this.#tools;
    play.innerHTML = icon(busy ? "pause" : "play");
    play.title = busy ? "Pause (Space)" : "Play (Space)";
    play.setAttribute("aria-label", play.title);
    play.disabled = !can;
  }

  /** Share of the clip that is there. @param {number} share */
  showLoaded(share) {
    this.parts.line.style.setProperty("--loaded", `${100 * share}%`);
  }

  /** @param {Clip | null} clip @param {Playback} playback */
  showTime(clip, playback) {
    const { line, frame, seconds } = this.parts;
    line.disabled = !playback.moves;
    if (!clip) {
      frame.textContent = seconds.textContent = "";
      return;
    }
    const shown = playback.frame(clip);
    const text = `${shown + 1} / ${clip.frames}`;
    if (frame.textContent !== text) {
      frame.textContent = text;
      seconds.textContent = ` ${(shown / clip.fps).toFixed(1)} s`;
      line.setAttribute("aria-valuetext", `frame ${text}`);
    }
    line.value = String(playback.tau);
    line.style.setProperty("--played", `${(100 * playback.tau).toFixed(1)}%`);
    this.showPicture(clip, shown);
  }

  /** The driving video's frame that belongs to this one of the clip. @param {Clip} clip @param {number} frame */
  showPicture({ pictures }, frame) {
    if (this.parts.film.hidden || !pictures.length) return;
    const index = Math.min(frame, pictures.length - 1);
    const picture = pictures[index];
    if (!picture || index === this.#shownPicture) return;
    const canvas = this.parts.filmCanvas;
    if (canvas.width !== picture.width || canvas.height !== picture.height)
      [canvas.width, canvas.height] = [picture.width, picture.height];
    const context = canvas.getContext("2d");
    context.clearRect(0, 0, canvas.width, canvas.height);
    context.drawImage(picture, 0, 0);
    this.#shownPicture = index;
  }

  /** Gives the keys to the player. */
  focus() {
    this.parts.root.focus({ preventScroll: true });
  }

  fullScreen() {
    this.menus.close();
    if (document.fullscreenElement === this.element) document.exitFullscreen();
    else this.element.requestFullscreen?.().catch(() => this.progress("This page does not allow full screen", 3000));
  }
}
