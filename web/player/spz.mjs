// Niantic's .spz, versions 2 to 4. Read in a .ply's frame, as what reads and writes these files mostly does; version 4 may
// state another.

import { placed, room, wavesOf } from "./gaussians.mjs";
import { bytesOf, inflate } from "./zip.mjs";
import { unzstd } from "./zstd.mjs";

const MAGIC = 0x5053474e;
/** Nothing sound unpacks to more than this many times its size, a little file aside. */
const RATIO = 16,
  LITTLE = 1 << 20;
const EXTENSIONS = 1 << 12;
/** The extension that states the axes, and its numbers: +Y up, +Y down. */
const AXES = 0xadbe0003,
  UP = 4,
  DOWN = 6;
const COLOR = 0.15;

/**
 * @param {Blob} file
 * @param {string} name for messages
 * @returns {Promise<import("./gaussians.mjs").Gaussians>}
 */
export async function readSpz(file, name) {
  const head = await bytesOf(file, 0, 32),
    packed = head[0] === 0x1f;
  const broken = () => new Error(`${name}: a damaged .spz, export or copy it again`);
  const start = packed ? await inflate("gzip", file, 16).catch(() => new Uint8Array(0)) : head;
  if (start.length < 16) throw broken();
  const view = new DataView(start.buffer, start.byteOffset);
  if (view.getUint32(0, true) !== MAGIC) throw new Error(`${name}: gzip, but no .spz; check what it is`);
  const [version, count] = [view.getUint32(4, true), view.getUint32(8, true)],
    [degree, fraction, flags, streams] = start.subarray(12);
  if (!(packed ? [2, 3] : [4]).includes(version))
    throw new Error(`${name}: version ${version} of .spz, where 2 to 4 are read; save it as version 3, or as .ply`);
  const waves = wavesOf(degree),
    sizes = [9, 1, 3, 3, version < 3 ? 3 : 4, 3 * waves].map((each) => each * count);
  const total = sizes.reduce((sum, size) => sum + size, 0);
  if (degree > 4 || fraction > 23 || total > RATIO * file.size + LITTLE)
    throw new Error(`${name}: its header promises what ${file.size} bytes cannot hold, it is damaged; export it again`);
  const gaussians = room(name, count, waves);
  let parts = /** @type {Uint8Array[]} */ ([]),
    extensions = new Uint8Array(0);
  if (packed) {
    const content = await inflate("gzip", file, 16 + total + EXTENSIONS).catch(() => new Uint8Array(0));
    if (content.length < 16 + total) throw broken();
    let at = 16;
    parts = sizes.map((size) => content.subarray(at, (at += size)));
    if (flags & 2) extensions = content.subarray(at);
  } else {
    const table = view.getUint32(16, true),
      data = await bytesOf(file);
    let at = table + 16 * streams,
      entry = table;
    if (at > data.length) throw broken();
    const places = new DataView(data.buffer);
    parts = sizes.map((size) => {
      if (!size) return new Uint8Array(0);
      if (entry === table + 16 * streams) throw broken();
      const [stored, unpacked] = [Number(places.getBigUint64(entry, true)), Number(places.getBigUint64(entry + 8, true))];
      entry += 16;
      if (unpacked !== size || at + stored > data.length) throw broken();
      try {
        return unzstd(data.subarray(at, (at += stored)), size);
      } catch {
        throw broken();
      }
    });
    if (flags & 2) extensions = data.subarray(32, Math.max(32, table));
  }
  const axes = axesOf(extensions);
  if (axes && axes !== UP && axes !== DOWN)
    throw new Error(`${name}: in coordinate system ${axes}, which is not read; save it as .ply`);
  const [means, opacities, colors, scales, quats, rest] = parts;
  for (let k = 0, at = 0; k < 3 * count; k++, at += 3) {
    const fixed = (means[at] << 8) | (means[at + 1] << 16) | (means[at + 2] << 24); // the sign is where it belongs
    gaussians.means[k] = (fixed >> 8) / 2 ** fraction;
    gaussians.logScales[k] = scales[k] / 16 - 10;
    gaussians.constant[k] = (colors[k] / 255 - 0.5) / COLOR;
  }
  for (let i = 0; i < count; i++) gaussians.opacities[i] = opacities[i] / 255;
  if (version < 3) firstThree(quats, gaussians.quats);
  else smallestThree(quats, gaussians.quats);
  const [all, kept] = [3 * waves, 3 * gaussians.waves];
  for (let i = 0; i < count; i++) for (let k = 0; k < kept; k++) gaussians.rest[i * kept + k] = (rest[i * all + k] - 128) / 128;
  return placed(gaussians, axes !== UP);
}

/** The coordinate system among records of kind, length and value; 0 where none is stated. @param {Uint8Array} records */
function axesOf(records) {
  const view = new DataView(records.buffer, records.byteOffset, records.length);
  for (let at = 0; at + 12 <= records.length; at += 8 + view.getUint32(at + 4, true))
    if (view.getUint32(at, true) === AXES && view.getUint32(at + 4, true) === 4) return view.getUint32(at + 8, true);
  return 0;
}

/** Three bytes each: x, y, z of rotations whose w is not negative. @param {Uint8Array} steps @param {Float32Array} quats wxyz */
function firstThree(steps, quats) {
  for (let at = 0, q = 0; at < steps.length; at += 3, q += 4) {
    const [x, y, z] = [0, 1, 2].map((k) => steps[at + k] / 127.5 - 1);
    quats.set([Math.sqrt(Math.max(0, 1 - x * x - y * y - z * z)), x, y, z], q);
  }
}

/**
 * A word each: which of x, y, z, w is largest, and the others in 9 bits and a sign.
 * @param {Uint8Array} words
 * @param {Float32Array} quats wxyz
 */
function smallestThree(words, quats) {
  const four = [0, 0, 0, 0];
  for (let at = 0, q = 0; at < words.length; at += 4, q += 4) {
    const word = words[at] | (words[at + 1] << 8) | (words[at + 2] << 16) | (words[at + 3] << 24),
      largest = word >>> 30;
    let sum = 0;
    for (let k = 0, shift = 20; k < 4; k++) {
      if (k === largest) continue;
      const part = (word >>> shift) & 1023,
        value = ((part & 511) * Math.SQRT1_2) / 511;
      four[k] = part & 512 ? -value : value;
      sum += value * value;
      shift -= 10;
    }
    four[largest] = Math.sqrt(Math.max(0, 1 - sum));
    quats[q] = four[3];
    quats[q + 1] = four[0];
    quats[q + 2] = four[1];
    quats[q + 3] = four[2];
  }
}
