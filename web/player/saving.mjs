// Saves what the player shows, and stops it for as long as a film takes.

import { saveFilm, savePicture } from "./film.mjs";
import { pathAt, pathSeconds } from "./path.mjs";
import { steps } from "./playback.mjs";

/**
 * @typedef {object} Shown the player's parts
 * @property {import("./interface.mjs").Interface} ui
 * @property {import("./stage.mjs").Stage} stage
 * @property {import("./moves.mjs").Moves} moves
 * @property {import("./playback.mjs").Playback} playback
 * @property {(import("./stream.mjs").Clip | null)[]} clips
 * @property {import("./view.mjs").State} state
 */

export class Saving {
  #shown;
  #on;
  /** @type {AbortController | null} */ #film = null;

  /**
   * @param {Shown} shown
   * @param {object} on
   * @param {() => string} on.name of the files, without suffix
   * @param {() => void} on.begin a film has the canvas from now on
   * @param {() => void} on.moved the film is at another moment
   * @param {(playing: boolean) => void} on.end the canvas is free again; whether the clip played before
   */
  constructor(shown, on) {
    this.#shown = shown;
    this.#on = on;
  }

  /** Whether a film is being saved. */
  get busy() {
    return Boolean(this.#film);
  }

  stop() {
    this.#film?.abort();
  }

  async picture() {
    const { ui, stage } = this.#begin();
    if (!(await stage.paintSorted()) || !stage.canvas) return;
    await savePicture(stage.canvas, `${this.#on.name()}.png`);
    ui.progress("Picture saved", 1500);
  }

  /** @param {boolean} path along the camera path */
  async film(path) {
    const { ui, stage, moves, playback, clips, state } = this.#begin();
    const clip = clips[0];
    if (!stage.shot() || !stage.canvas || !clip || this.#film) return;
    if (clip.ready < clip.frames) {
      ui.progress("Wait until all frames are here", 2500);
      return;
    }
    const before = { camera: moves.camera, time: playback.time, playing: playback.playing };
    const seconds = path ? pathSeconds(state, playback.seconds) : playback.seconds / state.speed;
    const pingpong = !path && state.loop === "pingpong";
    this.#film = new AbortController();
    const { signal } = this.#film;
    this.#on.begin();
    try {
      await saveFilm({
        canvas: stage.canvas,
        name: `${this.#on.name()}.webm`,
        seconds: pingpong ? 2 * seconds : seconds,
        fps: clip.fps * state.speed * Math.ceil(24 / (clip.fps * state.speed)),
        transparent: state.background === "transparent",
        signal,
        draw: async (share) => {
          if (path) [moves.camera, playback.time] = pathAt(state, share);
          else playback.time = pingpong ? 1 - Math.abs(1 - 2 * share) : (share * clip.frames) / steps(clip);
          this.#on.moved();
          if (!(await stage.paintSorted())) throw new Error("the graphics card has gone away, try again");
        },
        progress: (done, all) => ui.progress(`Film: ${done} of ${all} frames. Esc stops`),
      });
      ui.progress("Film saved", 2000);
    } catch (error) {
      ui.progress(signal.aborted ? "Film stopped" : `No film: ${/** @type {Error} */ (error).message}`, 4000);
    } finally {
      this.#film = null;
      [moves.camera, playback.time] = [before.camera, before.time];
      this.#on.end(before.playing);
    }
  }

  #begin() {
    this.#shown.ui.menus.close();
    this.#shown.stage.wake(true);
    return this.#shown;
  }
}
