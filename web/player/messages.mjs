// A player in an iframe, asked and heard by the page around it.
//
// That page sends    frame.contentWindow.postMessage({ anchor4d: 1, id: 7, call: "seek", args: [0.5] }, "*")
// and receives       { anchor4d: 1, id: 7, result: ... } or { anchor4d: 1, id: 7, error: "..." }
// and, unasked,      { anchor4d: 1, event: "time", detail: { time: 0.5, position: 7.5 } }

/** @typedef {import("./player.mjs").Player} Player */

export const PROTOCOL = 1;
/** Events of the player that are passed on, as they are named in docs/player.md. */
export const EVENTS = ["ready", "loaded", "play", "pause", "time", "view", "error"];

/** @type {Record<string, (player: Player, ...args: any[]) => unknown>} */
const CALLS = {
  play: (player) => player.play(),
  pause: (player) => player.pause(),
  seek: (player, time) => player.seek(Number.isFinite(time) ? Math.min(1, Math.max(0, time)) : 0),
  getView: (player) => player.getView(),
  setView: (player, view) => player.setView(view && typeof view === "object" ? view : {}),
  reset: (player) => player.reset(),
  state: (player) => player.info,
  measure: (player) => player.measure(),
  load: (player, sources, options = {}) => {
    const list = Array.isArray(sources) ? sources : [sources];
    const { labels, filmed } = options;
    player.load(list.map((source) => (typeof source === "string" ? new URL(source, document.baseURI).href : source)), {
      ...(labels && { labels }),
      ...(filmed && { filmed }),
    });
  },
};

/**
 * Answers the page around this one, and nobody else, until the signal aborts.
 * @param {Player} player
 * @param {{parent?: Window, signal?: AbortSignal}} [options]
 */
export function answer(player, { parent = window.parent, signal } = {}) {
  const post = (/** @type {object} */ message) => parent.postMessage({ anchor4d: PROTOCOL, ...message }, "*");
  for (const name of EVENTS) {
    const pass = (/** @type {Event} */ event) => post({ event: name, detail: /** @type {CustomEvent} */ (event).detail ?? null });
    player.addEventListener(name, pass, { signal });
  }
  const asked = (/** @type {MessageEvent} */ { source, data }) => {
    if (source !== parent || data?.anchor4d !== PROTOCOL || typeof data.call !== "string") return;
    const { id, call, args = [] } = data;
    try {
      if (!Object.hasOwn(CALLS, call)) throw new Error(`no call ${call}, only ${Object.keys(CALLS).join(", ")}`);
      post({ id, result: CALLS[call](player, ...args) ?? null });
    } catch (error) {
      post({ id, error: /** @type {Error} */ (error).message });
    }
  };
  window.addEventListener("message", asked, { signal });
  // What happened before the page around could listen.
  if (player.info.frames) post({ event: "ready", detail: player.info });
}
