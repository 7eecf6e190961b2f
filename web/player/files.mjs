// Whatever can be played, opened by its content: play streams, splat files, and folders or archives of them, one a frame. All
// in the page; nothing is sent anywhere.

import { readGlb } from "./glb.mjs";
import { pack } from "./pack.mjs";
import { readPly, readSplat } from "./ply.mjs";
import { readSog } from "./sog.mjs";
import { readSpz } from "./spz.mjs";
import { chunks, openStream } from "./stream.mjs";
import { bytesOf, openZip } from "./zip.mjs";

/** @typedef {import("./gaussians.mjs").Gaussians} Gaussians */
/** @typedef {import("./stream.mjs").StreamEvents} StreamEvents */

export const SUFFIXES = [".a4d", ".sog", ".spz", ".ply", ".splat", ".glb", ".zip"];
const FRAMES = [".ply", ".spz", ".splat", ".sog"];
/** Bytes of a file, frames of a sequence, and bytes of memory that its frames take. */
const MOST_BYTES = 2 ** 31 - 1,
  MOST_FRAMES = 10_000,
  MEMORY = 2 ** 30;

/** Files that belong together: frames of a sequence, or the parts of an unpacked SOG. */
export class Collection {
  name;
  entries;

  /** @param {string} name @param {Map<string, {size: number, read: () => Promise<Uint8Array>}>} entries by name */
  constructor(name, entries) {
    [this.name, this.entries] = [name, entries];
  }

  /** @param {string} name @param {File[]} files */
  static of(name, files) {
    return new Collection(name, new Map(files.map((file) => [file.name, { size: file.size, read: () => bytesOf(file) }])));
  }
}

/** @typedef {import("./player.mjs").Source | Collection} Playable */

const suffixOf = (/** @type {string} */ name) => name.toLowerCase().match(/\.[a-z0-9]+$/)?.[0] ?? "";
const stem = (/** @type {string} */ name) => name.replace(/\.[a-z0-9]+$/i, "");
const playable = (/** @type {File} */ { name }) => SUFFIXES.includes(suffixOf(name)) && !name.startsWith(".");

/**
 * Files as clips to play: up to two by themselves, more as the frames of a sequence.
 * @param {File[]} files
 * @returns {(File | Collection)[]} none where none of them can be played
 */
export function grouped(files) {
  const played = files.filter(playable);
  if (files.some(({ name }) => name === "meta.json") && !played.length) return [Collection.of("meta.json", files)];
  if (played.length < 3 || played.every(({ name }) => suffixOf(name) === ".a4d")) return played.slice(0, 2);
  return [Collection.of(stem(played[0].name).replace(/[\W_]*\d+$/, "") || stem(played[0].name), files)];
}

/**
 * What was dropped, as clips to play: folders each by itself, files as they are grouped. Call it while the event is dealt with.
 * @param {DataTransfer} dropped
 * @returns {Promise<(File | Collection)[]> | null} null where nothing in it can be played
 */
export function fromDrop(dropped) {
  const entries = [...dropped.items].map((item) => (item.kind === "file" ? item.webkitGetAsEntry?.() : null));
  const folders = /** @type {FileSystemDirectoryEntry[]} */ (entries.filter((entry) => entry?.isDirectory)).slice(0, 2);
  const files = grouped([...dropped.files]);
  if (!folders.length) return files.length ? Promise.resolve(files) : null;
  return Promise.all(folders.map(async (folder) => Collection.of(folder.name, await filesIn(folder))));
}

/** @param {FileSystemDirectoryEntry} folder @returns {Promise<File[]>} */
async function filesIn(folder) {
  const reader = folder.createReader(),
    found = /** @type {FileSystemEntry[]} */ ([]);
  for (;;) {
    const some = /** @type {FileSystemEntry[]} */ (await new Promise((done, failed) => reader.readEntries(done, failed)));
    if (!some.length) break;
    found.push(...some);
  }
  const files = /** @type {FileSystemFileEntry[]} */ (found.filter((entry) => entry.isFile));
  return Promise.all(files.map((entry) => new Promise((done, failed) => entry.file(done, failed))));
}

/** What a clip is called beside another. @param {File | Collection} clip */
export const titleOf = ({ name }) => stem(name);

/**
 * Opens a clip of any kind that is read; told of as a play stream is.
 * @param {Playable | URL | Uint8Array} source
 * @param {StreamEvents} [on]
 * @param {{signal?: AbortSignal}} [options] aborting ends it without an `error` event
 * @returns {Promise<import("./stream.mjs").Clip>}
 */
export async function openSource(source, on = {}, { signal } = {}) {
  const failed = (/** @type {Error} */ error) => {
    if (!signal?.aborted) on.error?.(error);
    throw error;
  };
  const found = source instanceof Collection ? { collection: source } : await known(source, signal).catch(failed);
  if (found.stream) {
    const error = (/** @type {Error} */ { message }) => on.error?.(new Error(`${found.name}: ${message}`));
    return openStream(found.stream, found.name ? { ...on, error } : on, { signal });
  }
  return decoded(found, on, signal).catch(failed);
}

/**
 * @typedef {object} Found
 * @property {AsyncIterable<Uint8Array>} [stream] of a play stream, or of what nobody knows
 * @property {Collection} [collection]
 * @property {Blob} [file]
 * @property {string} [kind] of a file
 * @property {string} [name] of a file, for messages
 */

/** What a source is, by its first bytes. @param {any} source @param {AbortSignal} [signal] @returns {Promise<Found>} */
async function known(source, signal) {
  const named =
    source instanceof File ? source.name : source instanceof URL || typeof source === "string" ? String(source) : "";
  const name = decodeURIComponent(named.split(/[?#]/)[0].split("/").pop() ?? "") || "the clip";
  if (source instanceof Blob) {
    const kind = kindOf(await bytesOf(source, 0, 4), name);
    if (!kind && source instanceof File && suffixOf(name) !== ".a4d")
      throw new Error(`${name}: not a file that is played, choose ${SUFFIXES.slice(0, -1).join(", ")} or a .zip of them`);
    if (source.size > MOST_BYTES && kind !== "zip") throw new Error(`${name}: larger than 2 GB, thin it out in a splat editor`);
    return kind ? { file: source, kind, name } : { stream: source.stream(), name: source instanceof File ? name : "" };
  }
  const pieces = chunks(source, signal),
    head = /** @type {Uint8Array[]} */ ([]);
  let length = 0;
  for (; length < 4; length += head[head.length - 1].length) {
    const { done, value } = await pieces.next();
    if (done) break;
    head.push(value);
  }
  const kind = kindOf(new Uint8Array(await new Blob(head).slice(0, 4).arrayBuffer()), name);
  if (!kind)
    return {
      stream: (async function* () {
        yield* head;
        yield* pieces;
      })(),
    };
  for await (const piece of pieces) {
    head.push(piece);
    if ((length += piece.length) > MOST_BYTES) throw new Error(`${name}: larger than 2 GB, thin it out in a splat editor`);
  }
  return { file: new Blob(head), kind, name };
}

/** @param {Uint8Array} first four bytes @param {string} name */
function kindOf(first, name) {
  const text = String.fromCharCode(...first);
  if (text.startsWith("ply")) return "ply";
  if (text.startsWith("\x1f\x8b") || text === "NGSP") return "spz";
  if (text === "PK\x03\x04") return "zip";
  if (text === "glTF") return "glb";
  return suffixOf(name) === ".splat" ? "splat" : "";
}

/** @param {Found} found @param {StreamEvents} on @param {AbortSignal} [signal] */
async function decoded({ collection, file, kind, name = "" }, on, signal) {
  if (kind === "zip") collection = new Collection(name, await openZip(/** @type {Blob} */ (file), name));
  if (collection) {
    const sog = sogOf(collection);
    if (sog) return pack([await readSog(sog, collection.name)], { name: collection.name }, on, signal);
    return pack(...(await sequence(collection, on, signal)), on, signal);
  }
  if (kind === "glb") {
    const { frames, ...times } = await readGlb(/** @type {Blob} */ (file), name);
    return pack(frames, { name, ...times }, on, signal);
  }
  return pack([await readSplats(/** @type {Blob} */ (file), name)], { name }, on, signal);
}

/** One set of Gaussians. @param {Blob} file @param {string} name @returns {Promise<Gaussians>} */
async function readSplats(file, name) {
  const kind = kindOf(await bytesOf(file, 0, 4), name);
  if (kind === "spz") return readSpz(file, name);
  if (kind === "ply") return readPly(await bytesOf(file), name);
  if (kind === "splat") return readSplat(await bytesOf(file), name);
  const sog = kind === "zip" ? sogOf(new Collection(name, await openZip(file, name))) : null;
  if (sog) return readSog(sog, name);
  throw new Error(`${name}: damaged, or no splat file; export it again`);
}

/** A reader of an unpacked SOG's parts, null where it is none. @param {Collection} collection */
function sogOf({ name, entries }) {
  // Some programs pack the folder, not what is in it.
  const meta = [...entries.keys()].filter((entry) => /(^|\/)meta\.json$/.test(entry)).sort((a, b) => a.length - b.length)[0];
  if (meta === undefined) return null;
  return async (/** @type {string} */ part) => {
    const entry = entries.get(meta.slice(0, -"meta.json".length) + part);
    if (!entry) throw new Error(`${name}: lacks ${part.slice(0, 80)}, which its meta.json names; copy or export it again`);
    return entry.read();
  };
}

/**
 * The frames of a sequence, and how they follow each other.
 * @param {Collection} collection
 * @param {StreamEvents} on
 * @param {AbortSignal} [signal]
 * @returns {Promise<[Gaussians[], {name: string, fps?: number, loop?: boolean}]>}
 */
async function sequence(collection, on, signal) {
  const { name, entries } = collection,
    { names, fps, loop } = await listed(collection);
  const frames = /** @type {Gaussians[]} */ ([]);
  for (const [index, entry] of names.entries()) {
    on.reading?.(index, names.length);
    const bytes = await /** @type {any} */ (entries.get(entry)).read();
    signal?.throwIfAborted();
    const frame = await readSplats(new Blob([bytes]), `${name}/${entry.split("/").pop()}`),
      { count, waves } = frame;
    const taken = 4 * (14 + 3 * waves) * count * names.length;
    if (taken > MEMORY)
      throw new Error(
        `${name}: ${names.length} frames of ${count} Gaussians take ${(taken / MEMORY).toFixed(1)} GB of memory, at most 1 ` +
          "is allowed; choose fewer frames, or export it as .a4d with Anchor4D",
      );
    frames.push(frame);
  }
  return [frames, { name, fps, loop }];
}

/** Names of a sequence's files in order, by its manifest.json where there is one. @param {Collection} collection */
async function listed({ name, entries }) {
  const at = [...entries.keys()].filter((entry) => /(^|\/)manifest\.json$/.test(entry)).sort((a, b) => a.length - b.length)[0];
  if (at !== undefined && /** @type {any} */ (entries.get(at)).size < 1 << 20) {
    const garbled = new Error(`${name}: its manifest.json is garbled, export the sequence again or leave that file out`);
    let manifest = /** @type {any} */ (null);
    try {
      manifest = JSON.parse(new TextDecoder().decode(await /** @type {any} */ (entries.get(at)).read()));
    } catch {
      throw garbled;
    }
    const { pattern, start, count } = manifest?.frames ?? {},
      parts = /^([^{}]*)\{frame(?::0?(\d{1,2})d?)?\}([^{}]*)$/.exec(pattern);
    const fps = Number(manifest?.fps ?? 12);
    if (
      !parts ||
      !(Number.isInteger(start) && start >= 0) ||
      !(Number.isInteger(count) && count > 0 && count <= MOST_FRAMES) ||
      !(fps > 0 && fps <= 1000)
    )
      throw garbled;
    const folder = at.slice(0, -"manifest.json".length);
    const names = Array.from(
      { length: count },
      (_, k) => folder + parts[1] + String(start + k).padStart(Number(parts[2] ?? 0), "0") + parts[3],
    );
    const gone = names.find((entry) => !entries.has(entry));
    if (gone) throw new Error(`${name}: ${gone} is missing, which manifest.json lists; take the whole sequence`);
    return { names, fps, loop: Boolean(manifest.loop) };
  }
  const splats = [...entries.keys()].filter((entry) => FRAMES.includes(suffixOf(entry)) && !/(^|\/)(\.|__MACOSX)/.test(entry));
  if (!splats.length)
    throw new Error(`${name}: holds no splat files (${FRAMES.join(", ")}), choose the folder that holds the frames`);
  const number = (/** @type {string} */ suffix) => splats.filter((entry) => suffixOf(entry) === suffix).length;
  const common = FRAMES.reduce((a, b) => (number(b) > number(a) ? b : a));
  const names = splats.filter((entry) => suffixOf(entry) === common).sort(new Intl.Collator("en", { numeric: true }).compare);
  if (names.length > MOST_FRAMES)
    throw new Error(`${name}: ${names.length} splat files, at most ${MOST_FRAMES} make a sequence`);
  return { names, fps: undefined, loop: undefined };
}
