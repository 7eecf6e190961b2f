// A view and its moment in a page's address, to be kept and passed on: page.html#time=0.42&camera=...&speed=0.5

import { fresh, round } from "./view.mjs";

/** @typedef {import("./view.mjs").View} View */
/** @typedef {import("./player.mjs").Player} Player */

/** What of a view, beside camera and time, is kept where it is not a new player's. */
const KEPT = /** @type {const} */ (["background", "mode", "loop", "speed", "split", "compare", "film"]);
/** Numbers of a camera: position, target, rotation (x y z w), vertical field of view in degrees. */
const NUMBERS = 11;

/**
 * A view as an address's last part, without the #.
 * @param {View} view
 */
export function toBookmark(view) {
  const [parts, usual] = [new URLSearchParams(), /** @type {any} */ (fresh())];
  parts.set("time", String(round(view.time ?? 0)));
  const camera = /** @type {any} */ (view.camera);
  if (camera) {
    const { position: p, target: t, quaternion: q, fov } = camera;
    parts.set("camera", [p.x, p.y, p.z, t.x, t.y, t.z, q.x, q.y, q.z, q.w, fov].map(round).join(","));
    parts.set("aspect", String(round(camera.aspect ?? 1)));
  }
  for (const name of KEPT) {
    const value = /** @type {any} */ (view)[name];
    if (value !== undefined && value !== usual[name]) parts.set(name, String(value));
  }
  return parts.toString().replaceAll("%2C", ",").replaceAll("%23", "");
}

/**
 * The view of an address's last part; what cannot be read in it is left out.
 * @param {string} hash with or without the #
 * @returns {Partial<View>}
 */
export function fromBookmark(hash) {
  const parts = new URLSearchParams(hash.replace(/^#/, ""));
  const [view, usual] = [/** @type {any} */ ({}), /** @type {any} */ (fresh())];
  const number = (/** @type {string | null} */ text) => (text === null || text === "" ? NaN : Number(text));
  const time = number(parts.get("time"));
  if (Number.isFinite(time)) view.time = Math.min(1, Math.max(0, time));
  const numbers = (parts.get("camera") ?? "").split(",").map(number);
  if (numbers.length === NUMBERS && numbers.every((value) => Number.isFinite(value) && Math.abs(value) < 1e6)) {
    const [px, py, pz, tx, ty, tz, x, y, z, w, fov] = numbers;
    const aspect = number(parts.get("aspect"));
    const apart = Math.hypot(px - tx, py - ty, pz - tz) > 1e-6;
    if (apart && Math.hypot(x, y, z, w) > 1e-3 && fov > 0.1 && fov < 170)
      view.camera = {
        position: { x: px, y: py, z: pz },
        target: { x: tx, y: ty, z: tz },
        quaternion: { x, y, z, w },
        fov,
        zoom: 1,
        cameraType: "perspective",
        aspect: aspect > 0.01 && aspect < 100 ? aspect : 1,
      };
  }
  for (const name of KEPT) {
    const text = parts.get(name) ?? (name === "split" ? parts.get("wiper") : null); // of version 0.1: wiper
    if (text === null) continue;
    const kind = typeof usual[name];
    if (kind === "boolean") view[name] = text === "true";
    else if (kind === "number") {
      if (Number.isFinite(number(text))) view[name] = number(text);
    } else view[name] = name === "background" && /^[0-9a-f]{6}$/i.test(text) ? `#${text}` : text;
  }
  return view;
}

/**
 * Keeps what a player shows in the page's address, and shows what an address says that is opened or typed.
 * @param {Player} player
 * @param {Window} page
 */
export function keepBookmark(player, page = window) {
  const take = () => {
    const view = fromBookmark(page.location.hash);
    if (Object.keys(view).length) player.setView(view);
  };
  take();
  page.addEventListener("hashchange", take);
  player.addEventListener("view", (event) => {
    const hash = `#${toBookmark(/** @type {CustomEvent} */ (event).detail)}`;
    if (hash !== page.location.hash) page.history.replaceState(page.history.state, "", hash);
  });
}
