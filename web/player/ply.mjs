// 3D Gaussian Splatting's .ply, in every encoding, and .splat, 32 bytes a Gaussian without a header.

import { placed, room, SH_C0, sigmoid } from "./gaussians.mjs";

/** @typedef {import("./gaussians.mjs").Gaussians} Gaussians */

const HEADER = 1 << 16;
const KINDS = {
  char: "Int8",
  uchar: "Uint8",
  short: "Int16",
  ushort: "Uint16",
  int: "Int32",
  uint: "Uint32",
  float: "Float32",
  double: "Float64",
  int8: "Int8",
  uint8: "Uint8",
  int16: "Int16",
  uint16: "Uint16",
  int32: "Int32",
  uint32: "Uint32",
  float32: "Float32",
  float64: "Float64",
};
const ENCODINGS = ["ascii", "binary_little_endian", "binary_big_endian"];
/** Columns of a chunk of a compressed file. */
const BOUNDS = [
  ["x", "y", "z"],
  ["scale_x", "scale_y", "scale_z"],
  ["r", "g", "b"],
].flatMap((axes) => ["min", "max"].flatMap((end) => axes.map((axis) => `${end}_${axis}`)));
/** A flat Gaussian's third deviation, as part of its smaller one. */
const FLAT = Math.log(1e-3);

/** @typedef {{name: string, count: number, columns: {name: string, kind: string}[], lists: boolean}} Element */

/** @typedef {{data: Uint8Array, name: string, elements: Element[], start: number, encoding: string}} File start: of records */
/** @typedef {(column: string, out: Float32Array, first: number, step: number) => void} Copy */

/** @param {Uint8Array} data @param {string} name @returns {File} */
function headerOf(data, name) {
  const text = new TextDecoder("latin1").decode(data.subarray(0, HEADER));
  const end = text.indexOf("end_header"),
    start = text.indexOf("\n", end) + 1;
  if (end < 0 || !start) throw new Error(`${name}: not a .ply that can be read, choose a splat .ply`);
  const elements = /** @type {Element[]} */ ([]);
  let encoding = "";
  for (const line of text.slice(0, end).split(/\r?\n/).slice(1)) {
    const words = line.trim().split(/\s+/),
      [what, first, second] = words;
    if (what === "format") encoding = first;
    else if (what === "element" && /^\d{1,15}$/.test(second))
      elements.push({ name: first, count: Number(second), columns: [], lists: false });
    else if (what === "property" && elements.length) {
      const element = /** @type {Element} */ (elements.at(-1));
      if (first === "list") element.lists = true;
      else if (first in KINDS) element.columns.push({ name: second, kind: /** @type {any} */ (KINDS)[first] });
      else throw new Error(`${name}: its property ${line.trim().slice(0, 60)} is not read, export it again`);
    } else if (what && what !== "comment" && what !== "obj_info")
      throw new Error(`${name}: its header line ${line.trim().slice(0, 60)} is garbled, export it again`);
  }
  if (!ENCODINGS.includes(encoding))
    throw new Error(`${name}: its encoding ${encoding.slice(0, 40)} is not read, save it as binary .ply`);
  return { data, name, elements, start, encoding };
}

const bytesOfKind = (/** @type {string} */ kind) => Number(kind.replace(/\D+/, "")) / 8;

/** @param {Uint8Array} data @param {string} name for messages @returns {Gaussians} */
export function readPly(data, name) {
  const file = headerOf(data, name),
    { elements, encoding } = file;
  const vertex = elements.findIndex((element) => element.name === "vertex");
  const names = elements[vertex]?.columns.map((column) => column.name) ?? [];
  if (names.includes("packed_position")) return readCompressed(file);
  const rgb = !names.includes("f_dc_0") && names.includes("red");
  const colors = rgb ? ["red", "green", "blue"] : ["f_dc_0", "f_dc_1", "f_dc_2"];
  const flat = names.includes("scale_1") && !names.includes("scale_2");
  const scales = flat ? ["scale_0", "scale_1"] : ["scale_0", "scale_1", "scale_2"];
  const rotation = ["rot_0", "rot_1", "rot_2", "rot_3"];
  const lacking = ["x", "y", "z", ...colors, "opacity", ...scales, ...rotation].filter((column) => !names.includes(column));
  if (lacking.length)
    throw new Error(
      `${name}: a .ply, but not of 3D Gaussians: it has no ${lacking.slice(0, 4).join(", ")}; choose a splat .ply`,
    );
  const rest = names.filter((column) => /^f_rest_\d{1,4}$/.test(column)).length,
    waves = rest / 3;
  if (!Number.isInteger(Math.sqrt(waves + 1)))
    throw new Error(`${name}: ${rest} f_rest properties, which fit no degree of harmonics; export it again`);
  const { count } = elements[vertex];
  const column = (encoding === "ascii" ? textColumns : binaryColumns)(file, vertex);
  const gaussians = room(name, count, waves);
  ["x", "y", "z"].forEach((part, k) => column(part, gaussians.means, k, 3));
  rotation.forEach((part, k) => column(part, gaussians.quats, k, 4));
  scales.forEach((part, k) => column(part, gaussians.logScales, k, 3));
  column("opacity", gaussians.opacities, 0, 1);
  colors.forEach((part, k) => column(part, gaussians.constant, k, 3));
  for (let channel = 0; channel < 3; channel++)
    for (let wave = 0; wave < gaussians.waves; wave++)
      column(`f_rest_${channel * waves + wave}`, gaussians.rest, 3 * wave + channel, 3 * gaussians.waves);
  const { logScales, opacities, constant } = gaussians;
  for (let i = 0; i < count; i++) opacities[i] = sigmoid(opacities[i]);
  if (flat) for (let k = 0; k < 3 * count; k += 3) logScales[k + 2] = Math.min(logScales[k], logScales[k + 1]) + FLAT;
  if (rgb) {
    const kind = elements[vertex].columns.find(({ name: part }) => part === "red")?.kind ?? "";
    const most = kind.startsWith("Float") ? 1 : 2 ** (8 * bytesOfKind(kind) - (kind.startsWith("U") ? 0 : 1)) - 1;
    for (let k = 0; k < 3 * count; k++) constant[k] = (constant[k] / most - 0.5) / SH_C0;
  }
  return placed(gaussians, true);
}

/** Where an element's records start, and their bytes. @param {File} file @param {number} index */
function records({ elements, start, name }, index) {
  const stride = (/** @type {Element} */ { columns }) => columns.reduce((sum, { kind }) => sum + bytesOfKind(kind), 0);
  for (const before of elements.slice(0, index + 1)) {
    if (before.lists)
      throw new Error(`${name}: its ${before.name} records hold lists, which is not read; export it without them`);
    if (before !== elements[index]) start += before.count * stride(before);
  }
  return { from: start, each: stride(elements[index]) };
}

/** Copies columns of an element by name. @param {File} file @param {number} index @returns {Copy} */
function binaryColumns(file, index) {
  const { data, name, elements, encoding } = file;
  const { count, columns } = elements[index],
    little = encoding === "binary_little_endian";
  const { from, each } = records(file, index);
  short(name, from + count * each - data.length);
  const view = /** @type {any} */ (new DataView(data.buffer, data.byteOffset, data.byteLength));
  return (column, out, first, step) => {
    let at = from,
      kind = "";
    for (const { name: other, kind: its } of columns) {
      kind = its;
      if (other === column) break;
      at += bytesOfKind(its);
    }
    if (kind === "Float32")
      for (let i = 0, o = first; i < count; i++, o += step, at += each) out[o] = view.getFloat32(at, little);
    else for (let i = 0, o = first; i < count; i++, o += step, at += each) out[o] = view[`get${kind}`](at, little);
  };
}

/** Copies columns of an element by name. @param {File} file @param {number} index @returns {Copy} */
function textColumns({ data, name, elements, start }, index) {
  const { count, columns } = elements[index];
  if (elements.slice(0, index + 1).some(({ lists }) => lists))
    throw new Error(`${name}: a text .ply with lists, save it as binary .ply`);
  // A number takes two bytes at least.
  short(name, start + 2 * count * columns.length - 1 - data.length);
  if (data.length > 1 << 28) throw new Error(`${name}: a text .ply of more than 256 MB, save it as binary .ply`);
  const before = elements.slice(0, index).reduce((sum, element) => sum + element.count * element.columns.length, 0);
  const words = new TextDecoder("latin1").decode(data.subarray(start)).trim().split(/\s+/);
  short(name, before + count * columns.length - words.length);
  return (column, out, first, step) => {
    let at = before + columns.findIndex((other) => other.name === column);
    for (let i = 0, o = first; i < count; i++, o += step, at += columns.length) out[o] = Number(words[at]);
  };
}

/** @param {string} name @param {number} missing */
function short(name, missing) {
  if (missing > 0) throw new Error(`${name}: cut short by ${missing} bytes or numbers, export or copy it again`);
}

/**
 * PlayCanvas' packed .ply: chunks of 256 Gaussians with their bounds, four words a Gaussian, harmonics a byte each.
 * @param {File} file
 * @returns {Gaussians}
 */
function readCompressed(file) {
  const { data, name, elements, encoding } = file;
  const at = (/** @type {string} */ part) => elements.findIndex((element) => element.name === part);
  const [chunk, vertex, sh] = ["chunk", "vertex", "sh"].map(at),
    { count, columns } = elements[vertex];
  const words = ["packed_position", "packed_rotation", "packed_scale", "packed_color"];
  const plain = columns.length === 4 && columns.every((column, k) => column.name === words[k] && column.kind === "Uint32");
  const bounds = elements[chunk]?.columns ?? [],
    chunks = Math.ceil(count / 256);
  if (
    !plain ||
    encoding !== "binary_little_endian" ||
    ![12, 18].includes(bounds.length) ||
    elements[chunk].count < chunks ||
    bounds.some((bound, k) => bound.kind !== "Float32" || bound.name !== BOUNDS[k])
  )
    throw new Error(`${name}: a compressed .ply of an unusual layout, save it as .sog or as plain .ply`);
  const waves = sh < 0 ? 0 : elements[sh].columns.length / 3;
  if (
    ![0, 3, 8, 15].includes(waves) ||
    (waves && (elements[sh].count !== count || elements[sh].columns.some(({ kind }) => kind !== "Uint8")))
  )
    throw new Error(`${name}: harmonics that fit no degree, save it as .sog or as plain .ply`);
  const [low, four, bytes] = [chunk, vertex, waves ? sh : 0].map((index) => records(file, index).from);
  short(name, Math.max(four + 16 * count, bytes + 3 * waves * count) - data.length);
  const gaussians = room(name, count, waves),
    { means, quats, logScales, opacities, constant, rest } = gaussians;
  const view = new DataView(data.buffer, data.byteOffset, data.byteLength);
  // Each byte stands for the middle of its 1/32, but the outermost for the ends.
  const middle = (/** @type {number} */ byte) => (byte === 0 ? -4 : byte === 255 ? 4 : (byte + 0.5) / 32 - 4);
  const three = (/** @type {number} */ word) => [(word >>> 21) / 2047, ((word >>> 11) & 1023) / 1023, (word & 2047) / 2047];
  for (let i = 0; i < count; i++) {
    const bound = (/** @type {number} */ k) => view.getFloat32(low + 4 * (bounds.length * (i >> 8) + k), true);
    const [place, turn, scale, color] = [0, 4, 8, 12].map((offset) => view.getUint32(four + 16 * i + offset, true));
    three(place).forEach((share, k) => (means[3 * i + k] = bound(k) + share * (bound(3 + k) - bound(k))));
    three(scale).forEach((share, k) => (logScales[3 * i + k] = bound(6 + k) + share * (bound(9 + k) - bound(6 + k))));
    const largest = turn >>> 30,
      others = [20, 10, 0].map((shift) => (((turn >>> shift) & 1023) / 1023 - 0.5) * Math.SQRT2);
    quats[4 * i + largest] = Math.sqrt(Math.max(0, 1 - others.reduce((sum, value) => sum + value * value, 0)));
    for (let k = 0, n = 0; k < 4; k++) if (k !== largest) quats[4 * i + k] = others[n++];
    for (let k = 0; k < 3; k++) {
      const share = ((color >>> (24 - 8 * k)) & 255) / 255;
      const value = bounds.length === 18 ? bound(12 + k) + share * (bound(15 + k) - bound(12 + k)) : share;
      constant[3 * i + k] = (value - 0.5) / SH_C0;
    }
    opacities[i] = (color & 255) / 255;
    // Channel by channel, as in a plain .ply.
    for (let channel = 0; channel < 3; channel++)
      for (let wave = 0; wave < waves; wave++)
        rest[3 * (waves * i + wave) + channel] = middle(data[bytes + 3 * waves * i + channel * waves + wave]);
  }
  return placed(gaussians, true);
}

/** @param {Uint8Array} data @param {string} name for messages @returns {Gaussians} */
export function readSplat(data, name) {
  if (data.length % 32)
    throw new Error(`${name}: not a whole number of 32-byte Gaussians, it is cut short or no .splat; export it again`);
  const count = data.length / 32,
    gaussians = room(name, count, 0),
    { means, quats, logScales, opacities, constant } = gaussians;
  const view = new DataView(data.buffer, data.byteOffset, data.byteLength);
  for (let i = 0, at = 0; i < count; i++, at += 32) {
    for (let k = 0; k < 3; k++) {
      means[3 * i + k] = view.getFloat32(at + 4 * k, true);
      logScales[3 * i + k] = Math.log(view.getFloat32(at + 12 + 4 * k, true));
      constant[3 * i + k] = (data[at + 24 + k] / 255 - 0.5) / SH_C0;
    }
    opacities[i] = data[at + 27] / 255;
    for (let k = 0; k < 4; k++) quats[4 * i + k] = (data[at + 28 + k] - 128) / 128;
  }
  return placed(gaussians, true);
}
