// Files and folders that the user drops onto the player or chooses.

import { make } from "./dom.mjs";
import { fromDrop, grouped, SUFFIXES } from "./files.mjs";

/** @typedef {(File | import("./files.mjs").Collection)[]} Clips */
/** @typedef {{clips: (clips: Clips) => void, failed: (message: string) => void}} Found what becomes of them */

/**
 * Takes what is dropped.
 * @param {HTMLElement} root what it is dropped onto
 * @param {Found} found
 * @param {AbortSignal} signal ends its listening
 */
export function takeDropped(root, found, signal) {
  const listen = (/** @type {string} */ type, /** @type {(event: any) => void} */ handle) =>
    root.addEventListener(type, handle, { signal });
  listen("dragover", (event) => {
    if (!event.dataTransfer?.types.includes("Files")) return;
    event.preventDefault();
    root.classList.add("over");
  });
  listen("dragleave", (event) => {
    if (!root.contains(event.relatedTarget)) root.classList.remove("over");
  });
  listen("drop", (event) => {
    root.classList.remove("over");
    const clips = event.dataTransfer && fromDrop(event.dataTransfer);
    if (!clips) return;
    event.preventDefault();
    event.stopPropagation();
    clips.then(
      (dropped) => play(dropped, found),
      () => found.failed("What was dropped could not be read: drop it again, or open it with O"),
    );
  });
}

/** Lets the user choose. @param {Found} found */
export function choose(found) {
  const input = make("input", { type: "file", multiple: true, accept: SUFFIXES.join(",") });
  input.addEventListener("change", () => play(grouped([...(input.files ?? [])]), found));
  input.click();
}

/** @param {Clips} clips @param {Found} found */
function play(clips, found) {
  if (clips.length) found.clips(clips);
  else found.failed(`None of these can be played, choose ${SUFFIXES.slice(0, -1).join(", ")} or a .zip of them`);
}
