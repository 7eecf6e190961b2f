// .glb with KHR_gaussian_splatting: plain ones, still or as frames that are shown in turn. +Y up as we are.

import { placed, room, wavesOf } from "./gaussians.mjs";
import { bytesOf } from "./zip.mjs";

const EXTENSION = "KHR_gaussian_splatting";
const JSON_CHUNK = 0x4e4f534a,
  BINARY_CHUNK = 0x004e4942,
  FLOAT = 5126;
const WIDTHS = { SCALAR: 1, VEC3: 3, VEC4: 4 };

/**
 * @param {Blob} file
 * @param {string} name for messages
 * @returns {Promise<{frames: import("./gaussians.mjs").Gaussians[], fps?: number, loop?: boolean}>}
 */
export async function readGlb(file, name) {
  const broken = (/** @type {string} */ why) => new Error(`${name}: a damaged .glb (${why}), export it again`);
  const data = await bytesOf(file),
    view = new DataView(data.buffer);
  if (data.length < 20 || view.getUint32(4, true) !== 2 || view.getUint32(16, true) !== JSON_CHUNK) throw broken("its header");
  const length = view.getUint32(12, true),
    next = 20 + length;
  if (next > data.length) throw broken("cut short");
  const binary = next + 8 <= data.length && view.getUint32(next + 4, true) === BINARY_CHUNK ? next + 8 : data.length;
  try {
    const gltf = JSON.parse(new TextDecoder().decode(data.subarray(20, next)));
    const scene = gltf.scenes?.[gltf.scene ?? 0] ?? {},
      sets = splats(gltf, scene, name);
    if (!sets.length) throw new Error(`${name}: a .glb without ${EXTENSION}; choose one that holds splats`);
    const frames = sets.map((attributes) => gaussiansOf(gltf, attributes, new DataView(data.buffer, binary), name));
    return { frames, fps: scene.extras?.fps, loop: scene.extras?.loop };
  } catch (error) {
    if (error instanceof SyntaxError || error instanceof TypeError || error instanceof RangeError)
      throw broken("its parts do not fit");
    throw error;
  }
}

/** Attributes of the splats under the scene: one, or those of frames shown in turn. */
function splats(/** @type {any} */ gltf, /** @type {any} */ scene, /** @type {string} */ name) {
  const found = /** @type {any[]} */ ([]),
    seen = new Set();
  const visit = (/** @type {number} */ index) => {
    const node = gltf.nodes[index];
    if (seen.has(node)) return;
    seen.add(node);
    const size = node.scale ?? [1, 1, 1],
      still = node.matrix || node.rotation || node.translation?.some((/** @type {number} */ x) => x);
    const primitives =
      gltf.meshes?.[node.mesh]?.primitives?.filter((/** @type {any} */ one) => one.extensions?.[EXTENSION]) ?? [];
    for (const { attributes, extensions } of primitives) {
      const { extensions: packed, colorSpace } = extensions[EXTENSION];
      if (packed) throw new Error(`${name}: its splats are compressed (${Object.keys(packed)[0]}), save it as .spz or .sog`);
      if (colorSpace !== "srgb_rec709_display") throw new Error(`${name}: its colours are in ${colorSpace}, export it as sRGB`);
      found.push({
        attributes,
        moved: Boolean(still),
        shown: size.every((/** @type {number} */ value) => value === 1),
        hidden: !size.some(Boolean),
      });
    }
    for (const child of node.children ?? []) visit(child);
  };
  for (const root of scene.nodes ?? []) visit(root);
  const frames = found.length > 1 && scene.extras?.frames === found.length,
    kept = frames ? found : found.filter(({ hidden }) => !hidden);
  if (kept.length > 1 && !frames)
    throw new Error(`${name}: holds ${kept.length} sets of splats, save the one to play by itself`);
  if (kept.some(({ moved, shown, hidden }) => moved || !(shown || hidden)))
    throw new Error(`${name}: its splats are turned or moved by a node, apply that and export it again`);
  return kept.map(({ attributes }) => attributes);
}

/** @returns {import("./gaussians.mjs").Gaussians} */
function gaussiansOf(
  /** @type {any} */ gltf,
  /** @type {any} */ attributes,
  /** @type {DataView} */ binary,
  /** @type {string} */ name,
) {
  const key = (/** @type {string} */ part) => attributes[`${EXTENSION}:${part}`];
  const degree = [1, 2, 3].filter((order) => key(`SH_DEGREE_${order}_COEF_0`) !== undefined).length;
  const { count } = gltf.accessors[attributes.POSITION],
    gaussians = room(name, count, wavesOf(degree));
  const { means, quats, logScales, opacities, constant, rest, waves } = gaussians;
  const copy = (
    /** @type {number} */ index,
    /** @type {"SCALAR" | "VEC3" | "VEC4"} */ type,
    /** @type {Float32Array} */ out,
    first = 0,
    step = WIDTHS[type],
  ) => {
    const accessor = gltf.accessors[index],
      part = gltf.bufferViews[accessor.bufferView],
      width = WIDTHS[type];
    const plain =
      accessor.componentType === FLOAT &&
      accessor.type === type &&
      accessor.count === count &&
      !accessor.sparse &&
      !part.buffer;
    if (!plain) throw new Error(`${name}: a .glb whose splats are no plain floats, save it as .spz or .sog`);
    const start = (part.byteOffset ?? 0) + (accessor.byteOffset ?? 0),
      stride = part.byteStride ?? 4 * width;
    if (start + stride * (count - 1) + 4 * width > binary.byteLength) throw new RangeError("cut short");
    for (let i = 0, at = start, to = first; i < count; i++, at += stride, to += step)
      for (let k = 0; k < width; k++) out[to + k] = binary.getFloat32(at + 4 * k, true);
  };
  copy(attributes.POSITION, "VEC3", means);
  copy(key("ROTATION"), "VEC4", quats);
  copy(key("SCALE"), "VEC3", logScales);
  copy(key("OPACITY"), "SCALAR", opacities);
  copy(key("SH_DEGREE_0_COEF_0"), "VEC3", constant);
  for (let order = 1, wave = 0; order <= degree; order++)
    for (let n = 0; n <= 2 * order; n++, wave++) copy(key(`SH_DEGREE_${order}_COEF_${n}`), "VEC3", rest, 3 * wave, 3 * waves);
  for (let i = 0; i < count; i++) {
    const [x, y, z, w] = quats.subarray(4 * i, 4 * i + 4);
    quats.set([w, x, y, z], 4 * i);
  }
  for (let k = 0; k < 3 * count; k++) logScales[k] = Math.log(logScales[k]);
  return placed(gaussians, false);
}
