// Reads a play stream (core/io/stream.py describes the file) while it arrives: the driving video's pictures, what never changes,
// then frame by frame. In files of version 1 the pictures come behind the frames.

const MAGIC = "A4DPLAY", VERSIONS = [1, 2];
/** Gaussians times frames of a clip. */
export const MAX_RECORDS = 1 << 26;
const MAX_HEADER = 1 << 22, MAX_PICTURE = 1 << 26;
const STATIC = [["shape", 4, 32]]; // name, words a Gaussian, bits a word
const LAYOUTS = /^pose,4,16;extra,1,(16|32)(;color,1,32)?$/;

/**
 * @typedef {object} StreamEvents each is optional
 * @property {(clip: Clip) => void} [header] the header is read
 * @property {(index: number) => void} [frame] a frame is there; they come in order, the first with what never changes
 * @property {(index: number, picture: ImageBitmap) => void} [picture] a picture of the driving video is there; they come in order
 * @property {() => void} [harmonics] colours that depend on the view are there
 * @property {(done: number, all: number) => void} [reading] so many files of a sequence are read
 * @property {() => void} [done] all is there
 * @property {(error: Error) => void} [error] the stream broke off or is damaged; what was there before stays good
 */

/** A moving scene, as far as it has arrived. */
export class Clip {
  constructor(header) {
    this.header = header;
    /** Number of Gaussians. */
    this.count = header.count;
    /** Number of frames of the whole clip. */
    this.frames = header.frames;
    this.fps = header.fps;
    this.loop = header.loop;
    /** Whether time flows between frames; else each is held until the next. */
    this.continuous = header.continuous !== false;
    /** Number of frames that are there: 0 .. ready - 1. */
    this.ready = 0;
    this.low = header.box.low;
    /** World units of one step of a 16-bit position. */
    this.step = header.box.high.map((high, k) => (high - header.box.low[k]) / 65535);
    this.changesShape = header.layout[1][2] === 32;
    this.changesColor = header.layout.length === 3;
    /** 4 words a Gaussian. @type {?Uint32Array} */
    this.statics = null;
    /** 4 words a Gaussian. @type {Uint16Array[]} */
    this.poses = [];
    /** A word a Gaussian. @type {(Uint16Array | Uint32Array)[]} */
    this.extras = [];
    /** A word a Gaussian, empty where colours stay. @type {Uint32Array[]} */
    this.colors = [];
    /** Harmonics above degree 0 of a Gaussian: 0, 3, 8 or 15. */
    this.waves = header.harmonics?.coefficients ?? 0;
    /** A word a harmonic, once they are there. @type {?Uint32Array} */
    this.harmonics = null;
    /** Pictures of the driving video by frame. @type {ImageBitmap[]} */
    this.pictures = [];
    /** Gaussians of a file that were left out since they hold no numbers. */
    this.left = 0;
  }
}

/**
 * Opens a play stream. The promise gives the clip once the header is read; the rest arrives afterwards, told by the events.
 * It rejects where the header cannot be read, after the `error` event.
 * @param {string | URL | ReadableStream<Uint8Array> | AsyncIterable<Uint8Array> | Blob | ArrayBuffer | Uint8Array} source
 * @param {StreamEvents} [on]
 * @param {{signal?: AbortSignal}} [options] aborting ends it without an `error` event
 * @returns {Promise<Clip>}
 */
export async function openStream(source, on = {}, { signal } = {}) {
  const bytes = new Reader(chunks(source, signal), signal);
  const failed = (error) => {
    bytes.close();
    if (!signal?.aborted) on.error?.(error);
  };
  try {
    const header = await readHeader(bytes);
    const clip = new Clip(header);
    on.header?.(clip);
    readBlocks(bytes, clip, on).then(() => on.done?.(), failed);
    return clip;
  } catch (error) {
    failed(error);
    throw error;
  }
}

async function readHeader(bytes) {
  const head = await bytes.take(12);
  if (String.fromCharCode(...head.subarray(0, 7)) !== MAGIC) throw new Error("This is not a play stream, choose an .a4d file.");
  if (!VERSIONS.includes(head[7]))
    throw new Error(`This play stream is of version ${head[7]}, the player reads ${VERSIONS.join(" and ")}: update the player.`);
  const length = new DataView(head.buffer).getUint32(8, true);
  if (length > MAX_HEADER) throw damaged("its header is too long");
  const text = new TextDecoder().decode(await bytes.take(length));
  let header;
  try {
    header = JSON.parse(text);
  } catch {
    throw damaged("its header cannot be read");
  }
  check(header, head[7]);
  return header;
}

/** What lies behind the header, in order: each a name and its place. */
function order({ statics, blocks, pictures, harmonics }, version) {
  const film = pictures.map((place) => ["picture", place]), waves = harmonics ? [["harmonics", harmonics.place]] : [];
  const frames = [["statics", statics], ...blocks.map((place) => ["frame", place])];
  return version === 1 ? [...frames, ...film, ...waves] : [...film, ...frames, ...waves];
}

/** Throws unless the header describes a clip that the blocks can fill; puts their order into it. */
function check(header, version) {
  const whole = (n) => Number.isInteger(n) && n > 0;
  const numbers = (list) => Array.isArray(list) && list.length === 3 && list.every(Number.isFinite);
  const { count, frames, box, scales, ranges, colors, layout, blocks, statics, pictures } = header ?? {};
  const sound = whole(count) && whole(frames) && header.fps > 0 && numbers(box?.low) && numbers(box?.high)
    && Number.isFinite(scales?.low) && Number.isFinite(scales?.step) && numbers(colors?.low) && numbers(colors?.step)
    && Number.isFinite(ranges?.scale) && Number.isFinite(ranges?.opacity) && LAYOUTS.test(layout?.map?.(String).join(";"))
    && Array.isArray(statics) && Array.isArray(pictures) && Array.isArray(blocks) && blocks.length === frames;
  if (!sound) throw damaged("its header is garbled");
  if (count * frames > MAX_RECORDS) throw new Error(`${count} Gaussians x ${frames} frames are too many for the player.`);
  const waves = header.harmonics;
  const fits = !waves || ([3, 8, 15].includes(waves.coefficients) && waves.reach > 0 && waves.reach < 1e6
    && count * waves.coefficients <= MAX_RECORDS);
  if (!fits) throw damaged("its colours are garbled");
  const limits = {
    statics: size(count, STATIC), frame: size(count, layout), picture: MAX_PICTURE, harmonics: size(count, wave(waves)),
  };
  let end = 0;
  header.order = order(header, version);
  for (const [kind, place] of header.order) {
    const [offset, length] = Array.isArray(place) ? place : [];
    const sits = offset === end && Number.isInteger(length) && length >= 0 && length <= limits[kind];
    if (!sits) throw damaged("its blocks are garbled");
    end += length;
  }
}

/** The layout of the block of harmonics. */
function wave(waves) {
  return waves ? [["harmonics", waves.coefficients, 32]] : [];
}

async function readBlocks(bytes, clip, on) {
  const { header, count } = clip;
  const block = async (packed, layout) => unshuffle(await inflated(packed, size(count, layout)), count, layout);
  let decoding = Promise.resolve(), failure = null; // of pictures: beside the reading, one after the other
  const picture = async (packed) => {
    const found = await createImageBitmap(new Blob([packed], { type: header.picture_type })).catch(() => {
      throw damaged("a picture of its video cannot be read");
    });
    if (bytes.closed) return found.close();
    on.picture?.(clip.pictures.push(found) - 1, found);
  };
  for (const [kind, [, length]] of header.order) {
    const packed = await bytes.take(length);
    if (kind === "picture") decoding = decoding.then(() => picture(packed)).catch((error) => (failure ??= error));
    else if (kind === "statics") [clip.statics] = await block(packed, STATIC);
    else if (kind === "harmonics") {
      [clip.harmonics] = await block(packed, wave(header.harmonics));
      bytes.check();
      on.harmonics?.();
    } else {
      const planes = await block(packed, header.layout);
      bytes.check();
      const lists = [clip.poses, clip.extras, clip.colors], index = clip.ready;
      for (const [k, plane] of planes.entries()) {
        if (index > 0) add(plane, lists[k][index - 1]);
        lists[k].push(plane);
      }
      clip.ready = index + 1;
      on.frame?.(index);
    }
    if (failure) throw failure;
  }
  await decoding;
  if (failure) throw failure;
}

/** Bytes of a block once inflated. */
function size(count, layout) {
  return layout.reduce((sum, [, words, bits]) => sum + (count * words * bits) / 8, 0);
}

/** A block of full length was not deflated. @returns {Promise<Uint8Array>} */
async function inflated(block, length) {
  if (block.length === length) return block;
  const out = new Uint8Array(length);
  const reader = new Blob([block]).stream().pipeThrough(new DecompressionStream("deflate")).getReader();
  let filled = 0;
  try {
    for (let step = await reader.read(); !step.done; step = await reader.read()) {
      if (filled + step.value.length > length) throw null;
      out.set(step.value, filled);
      filled += step.value.length;
    }
  } catch {
    filled = -1;
    reader.cancel().catch(() => {});
  }
  if (filled !== length) throw damaged("a frame cannot be read");
  return out;
}

/** Planes of a block whose bytes are sorted by significance: all first bytes of the records, then all second ones, ... */
function unshuffle(bytes, count, layout) {
  let offset = 0;
  return layout.map(([, words, bits]) => {
    const plane = bits === 16 ? new Uint16Array(count * words) : new Uint32Array(count * words);
    for (let word = 0; word < words; word++) {
      const [a, b, c, d] = [0, 1, 2, 3].map((k) => bytes.subarray(offset + k * count, offset + (k + 1) * count));
      if (bits === 16) for (let i = 0, o = word; i < count; i++, o += words) plane[o] = a[i] | (b[i] << 8);
      else for (let i = 0, o = word; i < count; i++, o += words) plane[o] = a[i] | (b[i] << 8) | (c[i] << 16) | (d[i] << 24);
      offset += (count * bits) / 8;
    }
    return plane;
  });
}

/** Undoes the difference to the frame before, modulo the word's size. */
function add(plane, before) {
  for (let i = 0; i < plane.length; i++) plane[i] += before[i];
}

function damaged(why) {
  return new Error(`The play stream is damaged: ${why}. Export or copy it again.`);
}

/**
 * A source's bytes as they come.
 * @param {string | URL | ReadableStream<Uint8Array> | AsyncIterable<Uint8Array> | Blob | ArrayBuffer | Uint8Array} source
 * @param {AbortSignal} [signal]
 * @returns {AsyncGenerator<Uint8Array>}
 */
export async function* chunks(source, signal) {
  if (typeof source === "string" || source instanceof URL) {
    const answer = await fetch(source, { signal });
    if (!answer.ok) throw new Error(`The clip could not be fetched (${answer.status} ${answer.statusText}).`);
    source = answer.body;
  } else if (source instanceof Blob) source = source.stream();
  else if (source instanceof ArrayBuffer) source = [new Uint8Array(source)];
  else if (source instanceof Uint8Array) source = [source];
  if (!source.getReader) return yield* source;
  const reader = source.getReader();
  try {
    for (let step = await reader.read(); !step.done; step = await reader.read()) yield step.value;
  } finally {
    reader.cancel().catch(() => {});
  }
}

/** Takes exact numbers of bytes from chunks of any length. */
class Reader {
  #chunks;
  #rest = new Uint8Array(0);
  #signal;
  closed = false;

  constructor(iterator, signal) {
    this.#chunks = iterator;
    this.#signal = signal;
    signal?.addEventListener("abort", () => this.close(), { once: true });
  }

  check() {
    this.#signal?.throwIfAborted();
  }

  async take(length) {
    const out = new Uint8Array(length);
    for (let filled = 0; ; ) {
      this.check();
      const part = this.#rest.subarray(0, length - filled);
      out.set(part, filled);
      filled += part.length;
      this.#rest = this.#rest.subarray(part.length);
      if (filled === length) return out;
      const { done, value } = await this.#chunks.next();
      this.check();
      if (done) throw new Error("The play stream breaks off before its end: export or copy it again.");
      this.#rest = value;
    }
  }

  close() {
    this.closed = true;
    this.#chunks.return().catch(() => {});
  }
}
