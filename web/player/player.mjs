// A moving 3D object on a page: picture, timeline and everything that can be done with them, in one shadow root.
//
//   const player = new Player(element, { source: "scene.a4d" });
//   ...
//   player.dispose();

import { acquire, giveUp } from "./contexts.mjs";
import { control, orbited, zoomed } from "./controls.mjs";
import { clamp, make, next } from "./dom.mjs";
import { savePicture, saveFilm } from "./film.mjs";
import { icon } from "./icons.mjs";
import { filmedCamera, fromInfo, homeCamera, lens, toInfo } from "./lens.mjs";
import { BACKGROUNDS, LOOPS, MODES, Menus, SIDES, SPEEDS } from "./menus.mjs";
import { pathCamera, pathMoment, pathTimes } from "./path.mjs";
import { Renderer } from "./renderer.mjs";
import { openStream } from "./stream.mjs";
import { STYLE } from "./style.mjs";

/** @typedef {import("./lens.mjs").Camera} Camera */
/** @typedef {import("./stream.mjs").Clip} Clip */
/** @typedef {string | ReadableStream<Uint8Array> | AsyncIterable<Uint8Array>} Source */

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
 * @property {number} [wiper] share of the picture that the first of two clips has
 * @property {boolean} [compare] whether the second clip is shown
 * @property {boolean} [film] whether the driving video is shown
 * @property {boolean} [moments] whether the path's keys hold their moments of the clip
 * @property {{version: 1, loop: boolean, keys: Key[]}} [trajectory] the recorded camera path
 */
/** @typedef {{time: number, scene_time: number | null, camera: object}} Key */

/**
 * @typedef {object} Options
 * @property {Source} [source] the clip
 * @property {Source[]} [sources] one clip, or two to compare
 * @property {string[]} [labels] names of two clips
 * @property {Partial<View>} [view] what to show first
 * @property {(view: View) => void} [onView] called after the user has changed the view
 * @property {object | null} [filmed] LOAD3D_CAMERA that sees the object as the pictures beside it do; the front camera if absent
 * @property {string} [name] file name, without suffix, of what is saved
 * @property {boolean} [autoplay] true by default, unless the system asks for less motion
 */

/** Buttons in the order in which they keep their place in a narrow bar; the rest fold into the menu. */
const KEPT = ["full", "film", "compare", "background", "mode", "loop", "speed", "frame", "keys", "picture", "record", "help"];
/** Before there is anything to look at. @type {Camera} */
const NOWHERE = { target: [0, 0, 0], distance: 2, azimuth: 0, elevation: 0, roll: 0, fov: 40, shift: [0, 0] };
/** Milliseconds: of a camera movement that was asked for, between moves of the timeline, of quiet before a view is told. */
const GLIDE = 260;
const TIMELINE = 70;
const QUIET = 150;
/** Milliseconds to wait for a lost context. */
const PATIENCE = 5000;
/** Longest side of the drawing, in pixels: sharper costs more than it shows. */
const SHARPEST = 2048;

export class Player {
  /** @type {HTMLElement} */ element;
  #shadow;
  #parts = /** @type {Record<string, any>} */ ({});
  #tools = /** @type {Record<string, HTMLButtonElement>} */ ({});
  #options;
  #stop = new AbortController();
  #loading = new AbortController();
  #observers = /** @type {{disconnect(): void}[]} */ ([]);

  /** @type {Renderer | null} */ #renderer = null;
  /** @type {(Clip | null)[]} */ #clips = [null, null];
  #canvas = /** @type {HTMLCanvasElement | null} */ (null);
  #size = { width: 0, height: 0, scale: 1 };
  #onScreen = false;
  #asleep = false;
  #disposed = false;
  #frame = 0; // of requestAnimationFrame
  #lost = 0; // timer
  #last = 0;

  /** @type {Camera | null} */ #camera = null;
  /** @type {{from: Camera, to: Camera, start: number} | null} */ #glide = null;
  #home = /** @type {Camera | null} */ (null);
  #time = 0; // of the clip, 0 to 1
  #wantedTime = /** @type {number | null} */ (null);
  #playing = false;
  #forward = true;
  #timeShown = 0; // when, in milliseconds
  #shownPicture = -1;
  #view;
  #told = "";
  #quiet = 0;
  /** @type {{start: number, seconds: number} | null} */ #preview = null;
  /** @type {AbortController | null} */ #saving = null;
  #menus;
  #holder;

  /** @param {HTMLElement} element what the player fills @param {Options} [options] */
  constructor(element, options = {}) {
    this.element = element;
    this.#options = options;
    this.#view = fresh();
    this.#holder = { shown: () => this.#shown(), release: () => this.#sleep() };
    this.#shadow = element.shadowRoot ?? element.attachShadow({ mode: "open" });
    this.#menus = this.#build();
    this.#watch();
    this.#arrange();
    if (options.view) this.setView(options.view);
    if (options.sources ?? options.source) this.load(options.sources ?? [/** @type {Source} */ (options.source)]);
  }

  // ---------------------------------------------------------------------------------------------------- for the page

  /**
   * Shows other clips.
   * @param {Source[]} sources one, or two to compare
   * @param {Pick<Options, "labels" | "filmed">} [options]
   */
  load(sources, options = {}) {
    Object.assign(this.#options, options);
    this.#loading.abort();
    this.#loading = new AbortController();
    const { signal } = this.#loading;
    // Where it stood still, it does so again.
    if (this.#clips[0] && !this.#playing) this.#wantedTime = this.#tau;
    this.#close();
    this.#renderer?.setClip(0, null);
    this.#renderer?.setClip(1, null);
    this.#shownPicture = -1;
    this.#home = null;
    this.#preview = null;
    this.#arrange();
    this.#say(sources.length ? "Loading …" : "");
    sources.slice(0, 2).forEach((source, slot) => {
      const on = {
        header: (/** @type {Clip} */ clip) => this.#arrived(slot, clip),
        frame: (/** @type {number} */ index) => this.#frameArrived(slot, index),
        picture: () => this.#showTime(),
        error: (/** @type {Error} */ error) => this.fail(error.message),
      };
      openStream(source, on, { signal }).catch(() => {}); // told by the event
    });
  }

  /** What is shown, as JSON. @returns {View} */
  getView() {
    const { keys, pathLoop, ...rest } = this.#view;
    const times = pathTimes(keys.length, pathLoop);
    const trajectory = { version: 1, loop: pathLoop, keys: keys.map((key, i) => ({ ...key, time: times[i] })) };
    const view = /** @type {View} */ ({ version: 1, time: round(this.#wantedTime ?? this.#tau), ...rest, trajectory });
    if (this.#camera) view.camera = rounded(toInfo(this.#glide?.to ?? this.#camera, this.#aspect()));
    else if (this.#options.view?.camera) view.camera = this.#options.view.camera;
    return view;
  }

  /** Shows something else; what is not given stays. @param {Partial<View>} view */
  setView(view) {
    const { trajectory, camera, time } = view;
    for (const name of /** @type {const} */ (["background", "mode", "loop", "speed", "wiper", "compare", "film", "moments"]))
      if (typeof view[name] === typeof this.#view[name]) /** @type {any} */ (this.#view)[name] = view[name];
    if (!(this.#view.mode in MODES)) this.#view.mode = "splats";
    if (!(this.#view.loop in LOOPS)) this.#view.loop = "loop";
    if (!/^#[0-9a-f]{6}$/i.test(this.#view.background)) this.#view.background = "transparent";
    this.#view.speed = clamp(this.#view.speed, 0.1, 4);
    this.#view.wiper = clamp(this.#view.wiper, 0, 1);
    if (trajectory?.keys)
      [this.#view.keys, this.#view.pathLoop] = [trajectory.keys.filter((key) => key?.camera?.position), !!trajectory.loop];
    if (camera) {
      this.#options.view = { ...this.#options.view, camera };
      this.#glide = null;
      this.#camera = fromInfo(camera);
    }
    // A moment that somebody chose is stood still at; the start is where playing begins.
    if (Number.isFinite(time)) {
      this.#time = clamp(/** @type {number} */ (time), 0, 1);
      this.#wantedTime = this.#time || null;
    }
    this.#told = JSON.stringify(this.getView());
    this.#arrange();
  }

  /** Back to what a new player shows. */
  reset() {
    this.#options.view = {};
    this.#glide = null;
    this.#camera = this.#home;
    [this.#view, this.#time, this.#wantedTime, this.#forward] = [fresh(), 0, null, true];
    this.#arrange();
    this.play();
  }

  /** A line of text in the picture's place. @param {string} text none: nothing */
  say(text) {
    this.#say(text);
  }

  play() {
    if (!this.#clips[0] || this.#clips[0].frames < 2) return;
    if (this.#view.loop === "once" && this.#time >= 1) this.#time = 0;
    [this.#playing, this.#last, this.#wantedTime] = [true, 0, null];
    this.#showPlaying();
    this.#draw();
  }

  pause() {
    [this.#playing, this.#preview, this.#wantedTime] = [false, null, null];
    this.#showPlaying();
    this.#changed();
  }

  /** Stands still at a moment. @param {number} time 0 to 1 */
  seek(time) {
    this.#playing = false;
    this.#preview = null;
    this.#time = clamp(time, 0, 1);
    this.#wantedTime = null;
    this.#showPlaying();
    this.#changed();
  }

  /** Says in the picture what went wrong. @param {string} message */
  fail(message) {
    this.#playing = false;
    this.#say(message, "error");
    this.#showPlaying();
  }

  get playing() {
    return this.#playing;
  }

  /** Frame that is shown, from 0; between two while it moves. */
  get position() {
    const clip = this.#clips[0];
    return clip ? this.#tau * steps(clip) : 0;
  }

  /** Numbers of the last drawing, see Renderer.stats; null while it holds no context. */
  get stats() {
    return this.#renderer?.stats ?? null;
  }

  /** Takes a key that was meant for no part of the page. @param {KeyboardEvent} event */
  key(event) {
    this.#key(event);
  }

  /** Frees everything: context, worker, memory, listeners. */
  dispose() {
    if (this.#disposed) return;
    this.#disposed = true;
    this.#stop.abort();
    this.#loading.abort();
    this.#saving?.abort();
    clearTimeout(this.#quiet);
    clearTimeout(this.#lost);
    cancelAnimationFrame(this.#frame);
    for (const observer of this.#observers) observer.disconnect();
    this.#free();
    this.#close();
    this.#shadow.replaceChildren();
  }

  // ---------------------------------------------------------------------------------------------------- building

  #build() {
    const p = this.#parts;
    const { signal } = this.#stop;
    const tool = (/** @type {string} */ id, /** @type {string} */ label, /** @type {() => void} */ click, menu = false) => {
      const button = make("button", { class: "tool", type: "button", "data-id": id, "aria-label": label, title: label, click });
      if (menu) button.setAttribute("aria-haspopup", "true");
      this.#tools[id] = button;
      return button;
    };
    p.filmCanvas = make("canvas", { role: "img", "aria-label": "The driving video" });
    p.film = make("div", { class: "film", hidden: true }, p.filmCanvas, make("span", { class: "tag left" }, "Driving video"));
    p.labelA = make("span", { class: "tag left", hidden: true });
    p.labelB = make("span", { class: "tag right", hidden: true });
    p.wiper = make("div", {
      class: "wiper",
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
    p.view = make("div", { class: "view checker" }, p.labelA, p.labelB, p.wiper, p.progress, p.note);
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
      tool("play", "Play (Space)", () => this.#toggle()),
      p.time,
      make("span", { class: "space" }),
      tool("loop", "Loop (L)", () => menus.toggle("loop"), true),
      tool("speed", "Speed ([ and ])", () => menus.toggle("speed"), true),
      tool("mode", "How it is drawn (M)", () => menus.toggle("mode"), true),
      tool("background", "Background (B)", () => menus.toggle("background"), true),
      tool("film", "Driving video (V)", () => this.#set({ film: !this.#view.film })),
      tool("compare", "Compare (C)", () => this.#set({ compare: !this.#view.compare })),
      tool("frame", "Look at (F, 0 to 4)", () => menus.toggle("frame"), true),
      tool("keys", "Camera path (K)", () => menus.toggle("keys"), true),
      tool("picture", "Save the picture (P)", () => this.#savePicture()),
      tool("record", "Save a film (R)", () => menus.toggle("record"), true),
      tool("help", "Help (?)", () => menus.toggleHelp()),
      tool("full", "Full screen (Shift + F)", () => this.#fullScreen()),
      tool("more", "More", () => menus.toggle("more"), true),
    );
    p.bar = make("div", { class: "bar" }, p.line, p.row);
    p.root = make("div", { class: "root", tabindex: 0, role: "group", "aria-label": "4D player" }, p.stage, p.bar);
    this.#shadow.replaceChildren(make("style", {}, STYLE), p.root);
    for (const id of ["frame", "keys", "picture", "record", "help", "more", "film", "compare", "background"])
      this.#tools[id].innerHTML = icon(id);

    control(
      p.view,
      {
        camera: () => /** @type {Camera} */ (this.#camera ?? NOWHERE),
        move: (camera) => this.#look(camera),
        focus: (x, y) => this.#focus(x, y),
        settle: () => this.#changed(),
      },
      signal,
    );
    p.line.addEventListener("input", () => this.seek(Number(p.line.value)), { signal });
    this.#dragWiper();
    const menus = new Menus(p.root, p.bar, this.#tools, () => this.#view, {
      set: (part) => this.#set(part),
      changed: () => this.#changed(),
      frameObject: () => this.#frameObject(),
      asFilmed: () => this.#asFilmed(),
      side: (azimuth) => this.#side(azimuth),
      addKey: () => this.#addKey(),
      goTo: (key) => {
        if (this.#view.moments && key.scene_time != null) this.seek(key.scene_time);
        this.#glideTo(fromInfo(key.camera));
      },
      playPath: () => this.#playPath(),
      saveFilm: (path) => this.#saveFilm(path),
      reset: () => {
        this.reset();
        this.#changed();
      },
    });
    // The page must not take what is meant for the player: the host pans, selects, runs and deletes on these.
    for (const type of ["pointerdown", "mousedown", "touchstart", "wheel", "dblclick", "contextmenu", "keyup"])
      p.root.addEventListener(type, (event) => event.stopPropagation(), { signal, passive: true });
    p.root.addEventListener(
      "pointerdown",
      (event) => {
        this.#wake(true);
        if (!menus.meant(event)) menus.close();
        if (event.composedPath().includes(p.view)) p.root.focus({ preventScroll: true });
      },
      { signal, capture: true },
    );
    p.root.addEventListener("pointerenter", () => this.#resize(), { signal });
    p.root.addEventListener("keydown", (event) => this.#key(event), { signal });
    document.addEventListener(
      "pointerdown",
      (event) => {
        if (!event.composedPath().includes(this.element)) menus.close();
      },
      { signal, capture: true },
    );
    return menus;
  }

  #watch() {
    const { signal } = this.#stop;
    const resized = new ResizeObserver(() => this.#resize());
    resized.observe(this.#parts.view);
    resized.observe(this.#parts.root);
    const seen = new IntersectionObserver(([entry]) => {
      this.#onScreen = entry.isIntersecting;
      this.#wake(false);
      this.#draw();
    });
    seen.observe(this.element);
    this.#observers.push(resized, seen);
    const theme = matchMedia("(prefers-color-scheme: dark)");
    theme.addEventListener("change", () => this.#theme(), { signal });
    // The host changes its theme by style and class of the document's root.
    const host = new MutationObserver(() => this.#theme());
    host.observe(document.documentElement, { attributes: true, attributeFilter: ["class", "style"] });
    host.observe(document.body, { attributes: true, attributeFilter: ["class", "style"] });
    this.#observers.push(host);
    document.addEventListener("visibilitychange", () => this.#draw(), { signal });
    document.addEventListener("fullscreenchange", () => this.#arrange(), { signal });
    this.#theme();
  }

  #theme() {
    const given = getComputedStyle(this.element).getPropertyValue("--comfy-menu-bg").trim();
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

  // ---------------------------------------------------------------------------------------------------- loading

  /** @param {number} slot @param {Clip} clip */
  #arrived(slot, clip) {
    this.#clips[slot] = clip;
    if (slot === 0) {
      this.#home = homeCamera(clip.header);
      this.#camera ??= this.#home;
    }
    this.#renderer?.setClip(slot, clip);
    this.#arrange();
    this.#wake(false);
  }

  /** @param {number} slot @param {number} index */
  #frameArrived(slot, index) {
    this.#renderer?.frameArrived(slot, index);
    const clip = this.#clips[slot];
    if (slot === 0 && index === 0 && clip) {
      this.#say("");
      if (this.#wantedTime == null && (this.#options.autoplay ?? !matchMedia("(prefers-reduced-motion: reduce)").matches))
        this.play();
    }
    this.#showLoading();
    this.#draw();
  }

  #showLoading() {
    const clip = this.#clips[0];
    const share = clip ? clip.ready / clip.frames : 0;
    this.#parts.line.style.setProperty("--loaded", `${100 * share}%`);
    if (!this.#saving) this.#progress(clip && share < 1 ? `Loading ${clip.ready} of ${clip.frames} frames` : "");
  }

  // ---------------------------------------------------------------------------------------------------- drawing

  #shown() {
    return this.#onScreen && !document.hidden && this.#size.width > 0 && this.#size.height > 0;
  }

  /** Makes the context where there is none and one is to be had. @param {boolean} insist */
  #wake(insist) {
    if (this.#disposed || !this.#clips[0] || !this.#shown()) return;
    if (this.#renderer) {
      acquire(this.#holder, false);
      return;
    }
    if (!acquire(this.#holder, insist)) {
      this.#say("Click to show", "asleep");
      return;
    }
    const canvas = make("canvas", { role: "img", "aria-label": "The object" });
    this.#renderer = new Renderer(canvas, {
      onOrder: () => this.#draw(),
      onLost: () => {
        this.#progress("The graphics card is busy, waiting …");
        // A browser that has dropped it for those of others does not give it back.
        this.#lost = setTimeout(() => this.#sleep(), PATIENCE);
      },
      onRestored: () => {
        clearTimeout(this.#lost);
        this.#showLoading();
        this.#draw();
      },
    });
    this.#canvas?.remove();
    this.#canvas = canvas;
    this.#parts.view.prepend(canvas);
    if (this.#asleep) this.#say("");
    this.#asleep = false;
    this.#size.width = 0;
    this.#resize();
    this.#clips.forEach((clip, slot) => this.#renderer?.setClip(/** @type {0 | 1} */ (slot), clip));
    this.#draw();
  }

  /** Gives the context up; the last picture stays. */
  #sleep() {
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
    this.#renderer.dispose();
    this.#renderer = null;
    this.#asleep = true;
    giveUp(this.#holder);
    this.#showLoading();
    if (this.#shown()) this.#say("Click to show", "asleep");
  }

  #resize() {
    const { view, root, stage } = this.#parts;
    stage.classList.toggle("tall", root.clientWidth < 1.1 * stage.clientHeight);
    this.#fold();
    const [w, h] = [view.clientWidth, view.clientHeight];
    const zoomed = view.getBoundingClientRect().width / (view.offsetWidth || 1) || 1;
    const scale = Math.min(devicePixelRatio * clamp(zoomed, 0.5, 4), SHARPEST / Math.max(w, h, 1));
    const before = this.#size;
    if (w === before.width && h === before.height && Math.abs(scale / before.scale - 1) < 0.05) return;
    this.#size = { width: w, height: h, scale };
    if (!w || !h) return;
    this.#renderer?.resize(Math.max(1, Math.round(w * scale)), Math.max(1, Math.round(h * scale)));
    this.#wake(false);
    // In the same task: a resized canvas is empty until it is drawn, which would flicker.
    this.#paint();
    this.#draw();
  }

  #aspect() {
    const { width, height } = this.#size;
    return width && height ? width / height : 1;
  }

  /** Asks for a new picture; nothing is drawn where nobody sees it. */
  #draw() {
    if (this.#frame || this.#disposed || !this.#shown() || this.#saving) return;
    this.#frame = requestAnimationFrame((now) => this.#tick(now));
  }

  /** @param {number} now */
  #tick(now) {
    this.#frame = 0;
    if (!this.#shown() || this.#saving) return;
    const seconds = this.#last ? Math.min(0.25, (now - this.#last) / 1000) : 0;
    this.#last = now;
    if (this.#preview) this.#followPath(now);
    else if (this.#playing) this.#advance(seconds);
    if (this.#glide) this.#gliding(now);
    this.#paint();
    // The timeline need not move as often as the object does: it costs more than drawing that.
    if (now - this.#timeShown > TIMELINE || !this.#playing) this.#showTime();
    else if (this.#clips[0]) this.#showPicture(this.#frameShown(this.#clips[0]));
    if (this.#playing || this.#glide || this.#preview) this.#draw();
    else this.#last = 0;
  }

  /** What is to be seen now, for the renderer; null where there is nothing yet. */
  #shot() {
    const clip = this.#clips[0];
    if (!this.#renderer || !clip?.ready || !this.#camera) return null;
    const other = this.#comparing() && this.#clips[1]?.ready ? this.#clips[1] : null;
    return {
      camera: lens(this.#camera, this.#aspect()),
      time: [this.#position(clip), other ? this.#position(other) : 0],
      background: this.#background(),
      mode: this.#view.mode,
      wiper: other ? this.#view.wiper : null,
    };
  }

  /** The moment in frames, as far as they are there. @param {Clip} clip */
  #position(clip) {
    return Math.min(this.#tau * steps(clip), clip.ready < clip.frames ? clip.ready - 1 : steps(clip));
  }

  #paint() {
    const shot = this.#shot();
    if (!shot) return;
    try {
      this.#renderer?.draw(shot);
    } catch (error) {
      this.#free();
      this.fail(/** @type {Error} */ (error).message);
    }
  }

  /** Lets go of the clips. */
  #close() {
    for (const clip of this.#clips) for (const picture of clip?.pictures ?? []) picture?.close();
    this.#clips = [null, null];
  }

  #free() {
    giveUp(this.#holder);
    this.#renderer?.dispose();
    this.#renderer = null;
  }

  /** @returns {[number, number, number, number]} */
  #background() {
    const { background } = this.#view;
    if (background === "transparent") return [0, 0, 0, 0];
    const value = parseInt(background.slice(1), 16);
    return [(value >> 16) / 255, ((value >> 8) & 255) / 255, (value & 255) / 255, 1];
  }

  #comparing() {
    return Boolean(this.#clips[1] && this.#view.compare);
  }

  // ---------------------------------------------------------------------------------------------------- time

  /** The moment shown: a clip that does not loop stands on its last frame for as long as on any other. */
  get #tau() {
    return Math.min(1, this.#time);
  }

  /** Seconds of the clip once through. */
  #seconds() {
    const clip = this.#clips[0];
    return clip ? clip.frames / clip.fps : 1;
  }

  /** @param {number} seconds that have passed */
  #advance(seconds) {
    const clip = this.#clips[0];
    if (!clip) return;
    const { loop, speed } = this.#view;
    const step = (seconds * speed * clip.fps) / steps(clip);
    let time = this.#time + (this.#forward ? step : -step);
    if (loop === "pingpong") {
      if (time >= 1) [time, this.#forward] = [Math.max(0, 2 - time), false];
      else if (time <= 0) [time, this.#forward] = [Math.min(1, -time), true];
    } else {
      this.#forward = true;
      if (loop === "once" && time >= 1) {
        this.#time = 1;
        this.pause();
        return;
      }
      time %= clip.frames / steps(clip);
    }
    // What has not come yet is waited for.
    this.#time = clip.ready < clip.frames ? clamp(time, 0, (clip.ready - 1) / steps(clip)) : time;
  }

  #showTime() {
    const clip = this.#clips[0];
    const { line, frame, seconds } = this.#parts;
    line.disabled = !clip || clip.frames < 2;
    this.#timeShown = this.#last;
    if (!clip) {
      frame.textContent = seconds.textContent = "";
      return;
    }
    const shown = this.#frameShown(clip);
    const text = `${shown + 1} / ${clip.frames}`;
    if (frame.textContent !== text) {
      frame.textContent = text;
      seconds.textContent = ` ${(shown / clip.fps).toFixed(1)} s`;
      line.setAttribute("aria-valuetext", `frame ${text}`);
    }
    line.value = String(this.#tau);
    line.style.setProperty("--played", `${(100 * this.#tau).toFixed(1)}%`);
    this.#showPicture(shown);
  }

  /** @param {Clip} clip */
  #frameShown(clip) {
    const frame = Math.floor(this.#tau * steps(clip) + 1e-4);
    return clip.loop ? frame % clip.frames : frame;
  }

  /** The driving video's frame that belongs to this one. @param {number} frame */
  #showPicture(frame) {
    const clip = this.#clips[0];
    const pictures = clip?.pictures ?? [];
    if (this.#parts.film.hidden || !pictures.length) return;
    const index = Math.min(frame, pictures.length - 1);
    const picture = pictures[index];
    if (!picture || index === this.#shownPicture) return;
    const canvas = this.#parts.filmCanvas;
    if (canvas.width !== picture.width || canvas.height !== picture.height)
      [canvas.width, canvas.height] = [picture.width, picture.height];
    const context = canvas.getContext("2d");
    context.clearRect(0, 0, canvas.width, canvas.height);
    context.drawImage(picture, 0, 0);
    this.#shownPicture = index;
  }

  #toggle() {
    if (this.#playing || this.#preview) this.pause();
    else this.play();
  }

  #showPlaying() {
    const busy = this.#playing || Boolean(this.#preview);
    const { play } = this.#tools;
    play.innerHTML = icon(busy ? "pause" : "play");
    play.title = busy ? "Pause (Space)" : "Play (Space)";
    play.setAttribute("aria-label", play.title);
    play.disabled = !this.#clips[0] || this.#clips[0].frames < 2;
  }

  // ---------------------------------------------------------------------------------------------------- looking

  /** @param {Camera} camera */
  #look(camera) {
    if (!this.#camera) return;
    this.#glide = null;
    this.#preview = null;
    this.#camera = camera;
    this.#draw();
  }

  /** Moves there in a moment, the shorter way round. @param {Camera} to */
  #glideTo(to) {
    if (!this.#camera) return;
    const from = this.#camera;
    const turn = ((((to.azimuth - from.azimuth) % 360) + 540) % 360) - 180;
    this.#glide = { from, to: { ...to, azimuth: from.azimuth + turn }, start: performance.now() };
    this.#preview = null;
    this.#changed();
  }

  /** @param {number} now */
  #gliding(now) {
    const { from, to, start } = /** @type {NonNullable<typeof this.#glide>} */ (this.#glide);
    const share = clamp((now - start) / GLIDE, 0, 1);
    if (share === 1) {
      this.#camera = { ...to, azimuth: ((to.azimuth + 540) % 360) - 180 };
      this.#glide = null;
      return;
    }
    const s = share * share * (3 - 2 * share);
    const mix = (/** @type {number} */ a, /** @type {number} */ b) => a + (b - a) * s;
    this.#camera = {
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

  /** @param {number} x @param {number} y CSS pixels of the picture */
  #focus(x, y) {
    const { width, height } = this.#size;
    const canvas = this.#canvas;
    if (!this.#renderer || !canvas || !this.#camera) return;
    const point = this.#renderer.pick((x * canvas.width) / width, (y * canvas.height) / height);
    if (point) this.#glideTo({ ...this.#camera, target: point });
  }

  /** Looks at the whole object from where the camera is. */
  #frameObject() {
    if (this.#home && this.#camera)
      this.#glideTo({ ...this.#home, azimuth: this.#camera.azimuth, elevation: this.#camera.elevation });
  }

  /** @param {number} azimuth degrees, 0 = as filmed */
  #side(azimuth) {
    if (this.#home && this.#camera)
      this.#glideTo({ ...this.#camera, azimuth: this.#home.azimuth + azimuth, elevation: this.#home.elevation });
  }

  #asFilmed() {
    const clip = this.#clips[0];
    if (clip) this.#glideTo(this.#options.filmed ? fromInfo(this.#options.filmed) : filmedCamera(clip.header));
  }

  /** Tells the page, once it is quiet, that the view has changed. */
  #changed() {
    this.#draw();
    this.#showTime();
    if (!this.#options.onView) return;
    clearTimeout(this.#quiet);
    this.#quiet = setTimeout(() => this.#tell(), QUIET);
  }

  #tell() {
    const view = this.getView();
    // While it plays the moment is nobody's choice: the last chosen one stays, so that a run gives the same picture again.
    if (this.#playing) view.time = JSON.parse(this.#told || "{}").time ?? 0;
    const text = JSON.stringify(view);
    if (text === this.#told) return;
    this.#told = text;
    this.#options.onView?.(view);
  }

  /** @param {Partial<typeof this.#view>} part */
  #set(part) {
    Object.assign(this.#view, part);
    this.#arrange();
    this.#changed();
  }

  #fullScreen() {
    this.#menus.close();
    if (document.fullscreenElement === this.element) document.exitFullscreen();
    else this.element.requestFullscreen?.().catch(() => this.#progress("This page does not allow full screen", 3000));
  }

  // ---------------------------------------------------------------------------------------------------- camera path

  #addKey() {
    if (!this.#camera) return;
    const key = {
      time: 0,
      scene_time: round(this.#tau),
      camera: rounded(toInfo({ ...this.#camera, shift: [0, 0] }, this.#aspect())),
    };
    this.#view.keys = [...this.#view.keys, key];
    this.#progress(`Key ${this.#view.keys.length} of the camera path`, 1500);
    this.#changed();
  }

  #playPath() {
    if (this.#view.keys.length < 2) return;
    const still = this.#view.moments && 1.5 * (this.#view.keys.length - 1);
    this.#preview = { start: performance.now(), seconds: Math.max(this.#seconds() / this.#view.speed, still || 0, 2) };
    this.#playing = false;
    this.#showPlaying();
    this.#draw();
  }

  /** Camera and moment of the path. @param {number} share of the path, 0 to 1 @returns {[Camera, number]} */
  #pathAt(share) {
    const { keys, pathLoop, moments } = this.#view;
    return [pathCamera(keys, pathLoop, share), moments ? pathMoment(keys, pathLoop, share) : share];
  }

  /** @param {number} now */
  #followPath(now) {
    const { start, seconds } = /** @type {NonNullable<typeof this.#preview>} */ (this.#preview);
    const share = clamp((now - start) / 1000 / seconds, 0, 1);
    [this.#camera, this.#time] = this.#pathAt(share);
    this.#glide = null;
    if (share === 1) {
      this.#preview = null;
      this.#showPlaying();
      this.#changed();
    }
  }

  // ---------------------------------------------------------------------------------------------------- saving

  #name(/** @type {string} */ suffix) {
    return `${this.#options.name ?? "anchor4d"}.${suffix}`;
  }

  async #savePicture() {
    this.#menus.close();
    this.#wake(true);
    const shot = this.#shot();
    if (!shot || !this.#canvas || !(await this.#renderer?.drawSorted(shot))) return;
    await savePicture(this.#canvas, this.#name("png"));
    this.#progress("Picture saved", 1500);
  }

  /** @param {boolean} path along the camera path */
  async #saveFilm(path) {
    this.#menus.close();
    this.#wake(true);
    const clip = this.#clips[0];
    if (!this.#shot() || !this.#canvas || !clip || this.#saving) return;
    if (clip.ready < clip.frames) {
      this.#progress("Wait until all frames are here", 2500);
      return;
    }
    const before = { camera: this.#camera, time: this.#time, playing: this.#playing };
    const seconds = path
      ? Math.max(this.#seconds(), this.#view.moments ? 1.5 * (this.#view.keys.length - 1) : 0, 2)
      : this.#seconds() / this.#view.speed;
    const pingpong = !path && this.#view.loop === "pingpong";
    this.#saving = new AbortController();
    cancelAnimationFrame(this.#frame);
    this.#frame = 0;
    try {
      await saveFilm({
        canvas: this.#canvas,
        name: this.#name("webm"),
        seconds: pingpong ? 2 * seconds : seconds,
        fps: clip.fps * this.#view.speed * Math.ceil(24 / (clip.fps * this.#view.speed)),
        transparent: this.#view.background === "transparent",
        signal: this.#saving.signal,
        draw: async (share) => {
          if (path) [this.#camera, this.#time] = this.#pathAt(share);
          else this.#time = pingpong ? 1 - Math.abs(1 - 2 * share) : (share * clip.frames) / steps(clip);
          this.#showTime();
          const shot = this.#shot();
          if (!shot || !(await this.#renderer?.drawSorted(shot))) throw new Error("the graphics card has gone away, try again");
        },
        progress: (done, all) => this.#progress(`Film: ${done} of ${all} frames. Esc stops`),
      });
      this.#progress("Film saved", 2000);
    } catch (error) {
      this.#progress(this.#saving.signal.aborted ? "Film stopped" : `No film: ${/** @type {Error} */ (error).message}`, 4000);
    } finally {
      this.#saving = null;
      [this.#camera, this.#time] = [before.camera, before.time];
      if (before.playing) this.play();
      this.#draw();
    }
  }

  // ---------------------------------------------------------------------------------------------------- bar and menus

  /** Brings every part in line with what is to be shown. */
  #arrange() {
    const p = this.#parts;
    const t = this.#tools;
    const { background, mode, loop, speed, wiper } = this.#view;
    const [clip, other] = this.#clips;
    const pictures = clip?.header.pictures.length ?? 0;
    p.view.classList.toggle("checker", background === "transparent");
    p.film.hidden = !(pictures && this.#view.film);
    p.film.style.display = p.film.hidden ? "none" : "";
    this.#shownPicture = -1;
    const comparing = this.#comparing();
    const [a, b] = this.#options.labels ?? ["A", "B"];
    for (const part of [p.labelA, p.labelB, p.wiper]) part.hidden = !comparing;
    [p.labelA.textContent, p.labelB.textContent] = [a, b];
    p.wiper.style.left = `${100 * wiper}%`;
    p.wiper.setAttribute("aria-valuenow", String(Math.round(100 * wiper)));
    t.loop.innerHTML = icon(loop);
    t.mode.innerHTML = icon(mode);
    t.speed.textContent = `${speed}×`;
    t.full.innerHTML = icon(document.fullscreenElement === this.element ? "shrink" : "full");
    t.film.setAttribute("aria-pressed", String(this.#view.film));
    t.compare.setAttribute("aria-pressed", String(this.#view.compare));
    for (const id of ["frame", "keys", "picture", "record"]) t[id].disabled = !clip;
    t.film.dataset.gone = String(!pictures);
    t.compare.dataset.gone = String(!other);
    this.#showPlaying();
    this.#fold();
    this.#showLoading();
    this.#showTime();
    this.#draw();
  }

  /** Puts the tools that do not fit into the menu. */
  #fold() {
    const { row, seconds } = this.#parts;
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
  #say(text, kind = "") {
    const { note } = this.#parts;
    note.hidden = !text;
    note.className = `note ${kind}`;
    note.setAttribute("role", kind === "error" ? "alert" : "status");
    note.textContent = text;
  }

  /** A line at the picture's foot. @param {string} text @param {number} [milliseconds] for how long; for good where 0 */
  #progress(text, milliseconds = 0) {
    const { progress } = this.#parts;
    progress.hidden = !text;
    progress.textContent = text;
    clearTimeout(progress.timer);
    if (milliseconds) progress.timer = setTimeout(() => (progress.hidden = true), milliseconds);
  }

  // ---------------------------------------------------------------------------------------------------- keys, wiper

  #dragWiper() {
    const { wiper, view } = this.#parts;
    const { signal } = this.#stop;
    const listen = (/** @type {string} */ type, /** @type {(event: any) => void} */ handle) =>
      wiper.addEventListener(type, handle, { signal });
    listen("pointerdown", (event) => {
      event.stopPropagation();
      wiper.setPointerCapture(event.pointerId);
    });
    listen("pointermove", (event) => {
      if (!wiper.hasPointerCapture(event.pointerId)) return;
      event.stopPropagation();
      const box = view.getBoundingClientRect();
      this.#set({ wiper: clamp((event.clientX - box.left) / box.width, 0, 1) });
    });
    listen("dblclick", (event) => {
      event.stopPropagation();
      this.#set({ wiper: 0.5 });
    });
    listen("keydown", (event) => {
      const step = { ArrowLeft: -0.05, ArrowRight: 0.05 }[/** @type {string} */ (event.key)];
      if (!step) return;
      event.preventDefault();
      event.stopPropagation();
      this.#set({ wiper: clamp(this.#view.wiper + step, 0, 1) });
    });
  }

  /** @param {KeyboardEvent} event */
  #key(event) {
    const target = /** @type {HTMLElement} */ (event.composedPath()[0]);
    const { key } = event;
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    event.stopPropagation();
    if (key === "Escape") {
      if (this.#saving) this.#saving.abort();
      else this.#menus.close();
      this.#parts.root.focus({ preventScroll: true });
      return;
    }
    if (target.matches("input:not([type=range])") || (target.matches("button") && (key === " " || key === "Enter"))) return;
    const act = this.#action(key, event.shiftKey);
    if (!act) return;
    event.preventDefault();
    act();
  }

  /** What a key does. @param {string} key @param {boolean} shift @returns {(() => void) | null} */
  #action(key, shift) {
    const clip = this.#clips[0];
    const view = this.#view;
    if (key === "?") return () => this.#menus.toggleHelp();
    if (shift && key.toLowerCase() === "f") return () => this.#fullScreen();
    if (!clip || !this.#camera || this.#saving) return null;
    const camera = this.#camera;
    const turn = (/** @type {number} */ dx, /** @type {number} */ dy) => () => {
      this.#look(orbited(camera, dx, dy));
      this.#changed();
    };
    const nearer = (/** @type {number} */ scale) => () => {
      this.#look(zoomed(camera, scale, 0, 0, 1));
      this.#changed();
    };
    if (shift && key.startsWith("Arrow"))
      return { ArrowLeft: turn(25, 0), ArrowRight: turn(-25, 0), ArrowUp: turn(0, 25), ArrowDown: turn(0, -25) }[key] ?? null;
    const frame = this.#time * steps(clip);
    const last = clip.frames - 1;
    const to = (/** @type {number} */ index) => () => this.seek(clamp(index, 0, last) / steps(clip));
    const speed = (/** @type {number} */ step) => () => {
      const nearest = SPEEDS.reduce((a, b) => (Math.abs(b - view.speed) < Math.abs(a - view.speed) ? b : a));
      this.#set({ speed: SPEEDS[clamp(SPEEDS.indexOf(nearest) + step, 0, SPEEDS.length - 1)] });
    };
    if (key in SIDES) return () => this.#side(/** @type {any} */ (SIDES)[key]);
    return (
      {
        " ": () => this.#toggle(),
        arrowleft: to(Math.ceil(frame - 1e-3) - 1),
        arrowright: to(Math.floor(frame + 1e-3) + 1),
        home: to(0),
        end: to(last),
        "+": nearer(0.9),
        "=": nearer(0.9),
        "-": nearer(1 / 0.9),
        f: () => this.#frameObject(),
        0: () => this.#asFilmed(),
        l: () => this.#set({ loop: next(Object.keys(LOOPS), view.loop) }),
        m: () => this.#set({ mode: next(Object.keys(MODES), view.mode) }),
        b: () => this.#set({ background: next(Object.keys(BACKGROUNDS), view.background) }),
        v: () => this.#set({ film: !view.film }),
        c: () => this.#set({ compare: !view.compare }),
        k: () => this.#addKey(),
        p: () => this.#savePicture(),
        r: () => this.#menus.toggle("record"),
        "[": speed(-1),
        "]": speed(1),
      }[key.toLowerCase()] ?? null
    );
  }
}

/** What a new player shows. */
function fresh() {
  return {
    background: "transparent",
    mode: "splats",
    loop: "loop",
    speed: 1,
    wiper: 0.5,
    compare: true,
    film: true,
    moments: false,
    keys: /** @type {Key[]} */ ([]),
    pathLoop: false,
  };
}

/** Frame intervals from time 0 to time 1: a clip that loops comes back to its first frame. @param {Clip} clip */
function steps(clip) {
  return Math.max(1, clip.loop ? clip.frames : clip.frames - 1);
}

/** @param {number} value */
const round = (value) => Math.round(value * 1e5) / 1e5;

/** Numbers of a JSON value at five decimals: steadier to compare, shorter to keep. @template T @param {T} value @returns {T} */
function rounded(value) {
  return JSON.parse(JSON.stringify(value, (_, part) => (typeof part === "number" ? round(part) : part)));
}
