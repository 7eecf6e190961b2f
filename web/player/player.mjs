// A moving 3D object on a page: picture, timeline and everything that can be done with them, in one shadow root.
//
//   const player = new Player(element, { source: "scene.a4d" });
//   ...
//   player.dispose();

import { Augmented, offered } from "./augmented.mjs";
import { control } from "./controls.mjs";
import { choose, takeDropped } from "./dropping.mjs";
import { openSource, titleOf } from "./files.mjs";
import { Interface } from "./interface.mjs";
import { press } from "./keys.mjs";
import { filmedCamera, fromInfo, homeCamera, lens, toInfo } from "./lens.mjs";
import { Marks, MOST, measured, nearest } from "./marks.mjs";
import { Moves } from "./moves.mjs";
import { pathSeconds } from "./path.mjs";
import { Playback, steps } from "./playback.mjs";
import { Saving } from "./saving.mjs";
import { Stage } from "./stage.mjs";
import { Thumbnails } from "./thumbnails.mjs";
import { backgroundOf, fresh, round, rounded, take, viewOf } from "./view.mjs";

/** @typedef {import("./files.mjs").Collection} Collection */
/** @typedef {import("./lens.mjs").Camera} Camera */
/** @typedef {import("./stream.mjs").Clip} Clip */
/** @typedef {import("./view.mjs").Key} Key */
/** @typedef {import("./view.mjs").View} View */
/** @typedef {string | Blob | ArrayBuffer | ReadableStream<Uint8Array> | AsyncIterable<Uint8Array>} Source */

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

/** Before there is anything to look at. @type {Camera} */
const NOWHERE = { target: [0, 0, 0], distance: 2, azimuth: 0, elevation: 0, roll: 0, fov: 40, shift: [0, 0] };
/** Milliseconds: between moves of the timeline, of quiet before a view is told. */
const TIMELINE = 70;
const QUIET = 150;

/**
 * Events (CustomEvent): "ready" the first frame is there (its detail: info), "loaded" all are, "play", "pause",
 * "time" {time, position} as it goes, "view" the view that the user has changed, "error" {message}.
 */
export class Player extends EventTarget {
  /** @type {HTMLElement} */ element;
  #options;
  #stop = new AbortController();
  #loading = new AbortController();

  /** @type {(Clip | null)[]} */ #clips = [null, null];
  #state = fresh();
  #playback = new Playback(this.#clips);
  #moves = new Moves({ moved: () => this.#draw(), changed: () => this.#changed() });
  #does;
  #ui;
  /** @type {Stage} */ #stage;
  #saving;
  #marks;
  #thumbnails;
  #augmented = new Augmented();
  #offered = false; // whether the device shows things in the user's room

  #loads = 0; // of clips, so far
  #begun = false; // whether the clip has had its chance to play by itself
  #frame = 0; // of requestAnimationFrame
  #last = 0; // when it was drawn, in milliseconds; 0 after standing still
  #timeShown = 0; // when, in milliseconds
  #timeTold = -1;
  #told = "";
  #quiet = 0; // timer

  /** @param {HTMLElement} element what the player fills @param {Options} [options] */
  constructor(element, options = {}) {
    super();
    const { signal } = this.#stop;
    this.element = element;
    this.#options = options;
    this.#does = this.#actions();
    this.#ui = new Interface(element, this.#state, this.#does, signal);
    const on = {
      shot: () => this.#shot(),
      draw: () => this.#draw(),
      loading: () => this.#showLoading(),
      failed: (/** @type {string} */ message) => this.fail(message),
    };
    this.#stage = new Stage(this.#ui, this.#clips, on, signal);
    this.#saving = this.#saver();
    const target = {
      camera: () => this.#moves.camera ?? NOWHERE,
      move: (/** @type {Camera} */ camera) => this.#moves.look(camera),
      focus: (/** @type {number} */ x, /** @type {number} */ y) => this.#focus(x, y),
      settle: () => this.#changed(),
    };
    control(this.#ui.parts.view, target, signal);
    this.#marks = new Marks(this.#ui.parts.view);
    this.#ui.parts.view.addEventListener(
      "click",
      (/** @type {MouseEvent} */ event) => {
        if (event.altKey) this.#mark(event.offsetX, event.offsetY);
      },
      { signal },
    );
    const thumbnails = {
      clip: () => this.#clips[0],
      seen: () => this.#seen(),
      aspect: () => this.#stage.aspect,
      draw: (/** @type {number} */ frame, /** @type {number} */ width, /** @type {number} */ height) => {
        const shot = this.#clips[0] && frame < this.#clips[0].ready && !this.#taken ? this.#shot() : null;
        return shot ? this.#stage.thumbnail({ ...shot, time: [frame, 0], split: null }, width, height) : Promise.resolve(null);
      },
    };
    this.#thumbnails = new Thumbnails(this.#ui.parts.bar, this.#ui.parts.line, thumbnails, signal);
    takeDropped(this.#ui.parts.root, this.#found, signal);
    offered().then((here) => {
      this.#offered = here;
      this.#ui.offer("ar", here);
    });
    document.addEventListener("visibilitychange", () => this.#draw(), { signal });
    document.addEventListener("fullscreenchange", () => this.#arrange(), { signal });
    this.#arrange();
    if (options.view) this.setView(options.view);
    if (options.sources ?? options.source) this.load(options.sources ?? [/** @type {Source} */ (options.source)]);
  }

  // ---------------------------------------------------------------------------------------------------- for the page

  /**
   * Shows other clips.
   * @param {(Source | Collection)[]} sources one, or two to compare
   * @param {Pick<Options, "labels" | "filmed">} [options]
   */
  load(sources, options = {}) {
    Object.assign(this.#options, options);
    this.#loading.abort();
    this.#loading = new AbortController();
    const { signal } = this.#loading;
    // Where it stood still, it does so again.
    if (this.#clips[0] && !this.#playback.playing) this.#playback.wanted = this.#playback.tau;
    this.#close();
    this.#stage.setClip(0, null);
    this.#stage.setClip(1, null);
    this.#moves.home = null;
    this.#moves.leavePath();
    this.#arrange();
    this.#begun = false;
    this.#loads++;
    this.#thumbnails.hide();
    this.say(sources.length ? "Loading …" : "");
    sources.slice(0, 2).forEach((source, slot) => {
      const on = {
        header: (/** @type {Clip} */ clip) => this.#arrived(slot, clip),
        frame: (/** @type {number} */ index) => this.#frameArrived(slot, index),
        picture: () => {
          if (slot === 0) this.#begin();
          this.#showTime();
        },
        harmonics: () => this.#draw(),
        reading: (/** @type {number} */ done, /** @type {number} */ all) =>
          this.#ui.progress(`Reading file ${done + 1} of ${all}`),
        done: () => {
          const { left = 0 } = this.#clips[slot] ?? {};
          if (left) this.#ui.progress(`${left} Gaussians hold no numbers and are left out`, 5000);
          if (this.#clips.every((clip, at) => at >= sources.length || clip?.ready === clip?.frames)) this.#tellOf("loaded");
        },
        error: (/** @type {Error} */ error) => this.fail(error.message),
      };
      openSource(source, on, { signal }).catch(() => {}); // told by the event
    });
  }

  /** What is shown, as JSON. @returns {View} */
  getView() {
    const view = viewOf(this.#state, this.#playback.wanted ?? this.#playback.tau);
    const camera = this.#moves.goal;
    if (camera) view.camera = rounded(toInfo(camera, this.#stage.aspect));
    else if (this.#options.view?.camera) view.camera = this.#options.view.camera;
    return view;
  }

  /** Shows something else; what is not given stays. @param {Partial<View>} view */
  setView(view) {
    const { camera, time } = view;
    take(this.#state, view);
    if (camera) {
      this.#options.view = { ...this.#options.view, camera };
      this.#moves.put(fromInfo(camera));
    }
    if (Number.isFinite(time)) this.#playback.want(/** @type {number} */ (time));
    this.#told = JSON.stringify(this.getView());
    this.#arrange();
  }

  /** Back to what a new player shows. */
  reset() {
    this.#options.view = {};
    this.#moves.put(this.#moves.home);
    Object.assign(this.#state, fresh());
    this.#playback.reset();
    this.#arrange();
    this.play();
  }

  /** A line of text in the picture's place. @param {string} text none: nothing */
  say(text) {
    this.#ui.say(text);
  }

  play() {
    if (!this.#playback.moves) return;
    this.#playback.start(this.#state);
    this.#last = 0;
    this.#showPlaying();
    this.#draw();
    this.#tellOf("play");
  }

  pause() {
    const played = this.#busy;
    this.#playback.stop();
    this.#moves.leavePath();
    this.#showPlaying();
    this.#changed();
    if (played) this.#tellOf("pause");
  }

  /** Stands still at a moment. @param {number} time 0 to 1 */
  seek(time) {
    this.#playback.seek(time);
    this.#moves.leavePath();
    this.#showPlaying();
    this.#changed();
  }

  /** Says in the picture what went wrong. @param {string} message */
  fail(message) {
    this.#playback.playing = false;
    this.#ui.say(message, "error");
    this.#showPlaying();
    this.#tellOf("error", { message });
  }

  get playing() {
    return this.#playback.playing;
  }

  /** Frame that is shown, from 0; between two while it moves. */
  get position() {
    const clip = this.#clips[0];
    return clip ? this.#playback.tau * steps(clip) : 0;
  }

  /** What plays and where it stands. */
  get info() {
    const clip = this.#clips[0];
    return {
      frames: clip?.frames ?? 0,
      fps: clip?.fps ?? 0,
      loop: clip?.loop ?? false,
      count: clip?.count ?? 0,
      ready: clip?.ready ?? 0,
      playing: this.playing,
      time: round(this.#playback.tau),
      position: round(this.position),
    };
  }

  /** The chosen points, where they are now, and the distance from each to the next, world units. */
  measure() {
    const clip = this.#clips[0];
    return measured(clip, this.#state.marks, clip?.ready ? this.#playback.position(clip) : 0);
  }

  /** Numbers of the last drawing, see Renderer.stats; null while it holds no context. */
  get stats() {
    return this.#stage.stats;
  }

  /** Takes a key that was meant for no part of the page. @param {KeyboardEvent} event */
  key(event) {
    const [clip, camera] = [this.#clips[0], this.#moves.camera];
    const ready = clip && camera && !this.#saving.busy;
    press(event, this.#does, ready ? { clip, camera, time: this.#playback.time, state: this.#state } : null);
  }

  /** Frees everything: context, worker, memory, listeners. */
  dispose() {
    if (this.#stop.signal.aborted) return;
    this.#stop.abort();
    this.#loading.abort();
    this.#saving.stop();
    this.#augmented.end();
    clearTimeout(this.#quiet);
    cancelAnimationFrame(this.#frame);
    this.#close();
    this.#ui.remove();
  }

  // ---------------------------------------------------------------------------------------------------- what can be asked for

  /** For the bar, the menus and the keys. @returns {import("./keys.mjs").Does} */
  #actions() {
    return {
      set: (part) => {
        Object.assign(this.#state, part);
        this.#arrange();
        this.#changed();
      },
      changed: () => this.#changed(),
      toggle: () => {
        if (this.#busy) this.pause();
        else this.play();
      },
      seek: (time) => this.seek(time),
      look: (camera) => this.#moves.look(camera),
      frameObject: () => this.#moves.frameObject(),
      asFilmed: () => this.#asFilmed(),
      side: (azimuth) => this.#moves.side(azimuth),
      addKey: () => this.#addKey(),
      goTo: (key) => {
        if (this.#state.moments && key.scene_time != null) this.seek(key.scene_time);
        this.#moves.glideTo(fromInfo(key.camera));
      },
      playPath: () => this.#playPath(),
      savePicture: () => this.#saving.picture(),
      saveFilm: (path) => this.#saving.film(path),
      reset: () => {
        this.reset();
        this.#changed();
      },
      key: (event) => this.key(event),
      menu: (id) => this.#ui.menus.toggle(id),
      help: () => this.#ui.menus.toggleHelp(),
      fullScreen: () => this.#ui.fullScreen(),
      open: () => choose(this.#found),
      augment: () => this.#augment(),
      close: () => {
        if (this.#saving.busy) this.#saving.stop();
        else this.#ui.menus.close();
        this.#ui.focus();
      },
    };
  }

  #saver() {
    const shown = {
      ui: this.#ui,
      stage: this.#stage,
      moves: this.#moves,
      playback: this.#playback,
      clips: this.#clips,
      state: this.#state,
    };
    return new Saving(shown, {
      name: () => this.#options.name ?? "anchor4d",
      begin: () => {
        cancelAnimationFrame(this.#frame);
        this.#frame = 0;
      },
      moved: () => this.#showTime(),
      end: (playing) => {
        if (playing) this.play();
        this.#draw();
      },
    });
  }

  /** @param {number} x @param {number} y CSS pixels of the picture */
  #focus(x, y) {
    const { camera } = this.#moves;
    const point = camera && this.#stage.pick(x, y);
    if (point) this.#moves.glideTo({ ...camera, target: point });
  }

  /** Files that the user has dropped or chosen. @type {import("./dropping.mjs").Found} */
  #found = {
    clips: (clips) => this.load(clips, { labels: clips.map(titleOf), filmed: null }),
    failed: (message) => this.fail(message),
  };

  /** Puts the object into the user's room, or takes it out again. */
  async #augment() {
    if (this.#augmented.busy) return this.#augmented.end();
    if (!this.#offered) return this.#ui.progress("This browser or device does not show things in your room", 3000);
    this.#stage.wake(true);
    const [clip, { renderer }] = [this.#clips[0], this.#stage];
    if (!clip?.ready || !renderer || this.#saving.busy) return;
    this.#last = 0;
    const on = {
      shot: (/** @type {number} */ now) => {
        const seconds = this.#last ? Math.min(0.25, (now - this.#last) / 1000) : 0;
        this.#last = now;
        if (this.#playback.playing && this.#playback.advance(seconds, this.#state)) this.pause();
        const shot = this.#shot();
        return shot && { ...shot, split: null };
      },
      select: () => (this.#busy ? this.pause() : this.play()),
      ended: () => {
        this.#last = 0;
        this.#ui.progress("");
        this.#arrange();
      },
    };
    try {
      await this.#augmented.start(renderer, clip.header.placement, on);
      this.#ui.progress("In your room; A ends it");
    } catch (error) {
      this.#ui.progress(`AR did not start: ${/** @type {Error} */ (error).message}`, 4000);
    }
  }

  /** Whether something else has the canvas: a film that is saved, or a headset. */
  get #taken() {
    return this.#saving.busy || this.#augmented.busy;
  }

  /** Chooses the Gaussian there, or no longer. @param {number} x @param {number} y CSS pixels of the picture */
  #mark(x, y) {
    const clip = this.#clips[0];
    const point = clip?.ready ? this.#stage.pick(x, y) : null;
    if (!clip || !point) return;
    const { marks } = this.#state;
    const position = this.#playback.position(clip);
    const { points } = measured(clip, marks, position);
    const reach = 0.02 * Math.hypot(...clip.step) * 65535;
    const same = points.find(({ position: place }) => Math.hypot(...place.map((value, k) => value - point[k])) < reach);
    this.#does.set({
      marks: same ? marks.filter((index) => index !== same.index) : [...marks, nearest(clip, point, position)].slice(-MOST),
    });
  }

  #asFilmed() {
    const clip = this.#clips[0];
    if (clip) this.#moves.glideTo(this.#options.filmed ? fromInfo(this.#options.filmed) : filmedCamera(clip.header));
  }

  #addKey() {
    const { camera } = this.#moves;
    if (!camera) return;
    const key = {
      time: 0,
      scene_time: round(this.#playback.tau),
      camera: rounded(toInfo({ ...camera, shift: [0, 0] }, this.#stage.aspect)),
    };
    this.#state.keys = [...this.#state.keys, key];
    this.#ui.progress(`Key ${this.#state.keys.length} of the camera path`, 1500);
    this.#changed();
  }

  #playPath() {
    if (this.#state.keys.length < 2) return;
    this.#moves.startPath(pathSeconds(this.#state, this.#playback.seconds / this.#state.speed));
    this.#playback.playing = false;
    this.#showPlaying();
    this.#draw();
  }

  // ---------------------------------------------------------------------------------------------------- loading

  /** @param {number} slot @param {Clip} clip */
  #arrived(slot, clip) {
    this.#clips[slot] = clip;
    if (slot === 0) {
      this.#moves.home = homeCamera(clip.header);
      this.#moves.camera ??= this.#moves.home;
    }
    this.#stage.setClip(slot, clip);
    this.#arrange();
    this.#stage.wake(false);
  }

  /** @param {number} slot @param {number} index */
  #frameArrived(slot, index) {
    this.#stage.frameArrived(slot, index);
    if (slot === 0 && index === 0 && this.#clips[0]) {
      this.say("");
      this.#tellOf("ready", this.info);
      this.#begin();
    }
    this.#showLoading();
    this.#draw();
  }

  /** Plays once there is anything to see: a picture of the driving video, or a frame. */
  #begin() {
    if (this.#begun) return;
    this.#begun = true;
    const autoplay = this.#options.autoplay ?? !matchMedia("(prefers-reduced-motion: reduce)").matches;
    if (this.#playback.wanted == null && autoplay) this.play();
  }

  /** Lets go of the clips. */
  #close() {
    for (const clip of this.#clips) for (const picture of clip?.pictures ?? []) picture?.close();
    this.#clips.fill(null);
  }

  // ---------------------------------------------------------------------------------------------------- drawing

  /** Asks for a new picture; nothing is drawn where nobody sees it. */
  #draw() {
    if (this.#frame || this.#stop.signal.aborted || !this.#stage.shown() || this.#taken) return;
    this.#frame = requestAnimationFrame((now) => this.#tick(now));
  }

  /** @param {number} now */
  #tick(now) {
    this.#frame = 0;
    if (!this.#stage.shown() || this.#taken) return;
    const [playback, moves, clip] = [this.#playback, this.#moves, this.#clips[0]];
    const seconds = this.#last ? Math.min(0.25, (now - this.#last) / 1000) : 0;
    this.#last = now;
    if (moves.following) this.#follow(now);
    else if (playback.playing && playback.advance(seconds, this.#state)) this.pause();
    moves.glide(now);
    this.#stage.paint();
    this.#showMarks();
    // The timeline need not move as often as the object does: it costs more than drawing that.
    if (now - this.#timeShown > TIMELINE || !playback.playing) this.#showTime();
    else if (clip) this.#ui.showPicture(clip, playback.frame(clip));
    if (this.#busy || moves.gliding) this.#draw();
    else this.#last = 0;
  }

  /** @param {number} now */
  #follow(now) {
    this.#playback.time = this.#moves.follow(now, this.#state);
    if (this.#moves.following) return;
    this.#showPlaying();
    this.#changed();
  }

  #showMarks() {
    const [clip, { camera }] = [this.#clips[0], this.#moves];
    const shown = clip?.ready && camera && this.#state.marks.length;
    const position = shown ? this.#playback.position(clip) : 0;
    this.#marks.show(shown ? lens(camera, this.#stage.aspect) : null, clip, this.#state.marks, position);
  }

  /** What is to be seen now, for the renderer; null where there is nothing yet. */
  #shot() {
    const [clip, second] = this.#clips;
    const { camera } = this.#moves;
    if (!clip?.ready || !camera) return null;
    const other = this.#state.compare && second?.ready ? second : null;
    return /** @type {import("./renderer.mjs").Shot} */ ({
      camera: lens(camera, this.#stage.aspect),
      time: [this.#playback.position(clip), other ? this.#playback.position(other) : 0],
      background: backgroundOf(this.#state),
      mode: this.#state.mode,
      split: other ? this.#state.split : null,
    });
  }

  /** Changes where thumbnails would look otherwise. */
  #seen() {
    const { mode, background } = this.#state;
    return this.#clips[0]?.ready ? JSON.stringify([this.#loads, mode, background, this.#moves.camera]) : "";
  }

  // ---------------------------------------------------------------------------------------------------- showing

  /** Whether something plays: the clip or the path. */
  get #busy() {
    return this.#playback.playing || this.#moves.following;
  }

  /** Brings every part in line with what is to be shown. */
  #arrange() {
    this.#ui.arrange(this.#clips, this.#options.labels ?? ["A", "B"]);
    this.#showPlaying();
    this.#showLoading();
    this.#showTime();
    this.#draw();
  }

  #showPlaying() {
    this.#ui.showPlaying(this.#busy, this.#playback.moves);
  }

  #showTime() {
    this.#timeShown = this.#last;
    this.#ui.showTime(this.#clips[0], this.#playback);
    const time = round(this.#playback.tau);
    if (time === this.#timeTold) return;
    this.#timeTold = time;
    this.#tellOf("time", { time, position: round(this.position) });
  }

  /** @param {string} event @param {unknown} [detail] */
  #tellOf(event, detail = null) {
    this.dispatchEvent(new CustomEvent(event, { detail }));
  }

  #showLoading() {
    const clip = this.#clips[0];
    const share = clip ? clip.ready / clip.frames : 0;
    this.#ui.showLoaded(share);
    if (!this.#saving.busy) this.#ui.progress(clip && share < 1 ? `Loading ${clip.ready} of ${clip.frames} frames` : "");
  }

  /** Tells the page, once it is quiet, that the view has changed. */
  #changed() {
    this.#draw();
    this.#showTime();
    clearTimeout(this.#quiet);
    this.#quiet = setTimeout(() => this.#tell(), QUIET);
  }

  #tell() {
    const view = this.getView();
    // While it plays the moment is nobody's choice: the last chosen one stays, so that a run gives the same picture again.
    if (this.#playback.playing) view.time = JSON.parse(this.#told || "{}").time ?? 0;
    const text = JSON.stringify(view);
    if (text === this.#told) return;
    this.#told = text;
    this.#options.onView?.(view);
    this.#tellOf("view", view);
  }
}
