// PlayCanvas' SOG: a meta.json and WebP pictures whose pixels are numbers, versions 1 and 2; in a .ply's frame.

import { placed, room, sigmoid } from "./gaussians.mjs";

const META = 1 << 20; // bytes
const PIXELS = 1 << 25; // of a picture
const ROW = 64; // entries of a row of the palette's picture

/**
 * @param {(entry: string) => Promise<Uint8Array>} content a member's bytes by its name beside meta.json
 * @param {string} name for messages
 * @returns {Promise<import("./gaussians.mjs").Gaussians>}
 */
export async function readSog(content, name) {
  const text = await content("meta.json"),
    pictures = new Pictures();
  if (text.length > META) throw damaged(name, "its meta.json is too long");
  try {
    return await decoded(JSON.parse(new TextDecoder().decode(text)), content, pictures, name);
  } catch (error) {
    if (error instanceof SyntaxError || error instanceof TypeError) throw damaged(name, "its meta.json is garbled");
    throw error;
  } finally {
    pictures.dispose();
  }
}

/** @param {string} name @param {string} why */
function damaged(name, why) {
  return new Error(`${name}: a damaged SOG (${why}), copy or export it again`);
}

/** @param {any} meta @param {(entry: string) => Promise<Uint8Array>} content @param {Pictures} pictures @param {string} name */
async function decoded(meta, content, pictures, name) {
  const first = meta.version === undefined,
    count = meta.count ?? meta.means.shape[0];
  if (!first && meta.version !== 2)
    throw new Error(`${name}: version ${String(meta.version).slice(0, 20)} of SOG, where 1 and 2 are read; save it as .ply`);
  if (!Number.isInteger(count)) throw damaged(name, "no number of Gaussians");
  const picture = async (/** @type {string} */ entry) =>
    pictures.pixels(await content(String(entry)), `${name}: its ${String(entry).slice(0, 80)}`);
  const pixels = async (/** @type {string} */ part, index = 0) => {
    const { data } = await picture(meta[part].files[index]);
    if (data.length < 4 * count) throw damaged(name, `a picture of fewer than ${count} pixels`);
    return data;
  };
  const palette = meta.shN ? await picture(meta.shN.files[0]) : null,
    waves = palette ? palette.width / ROW : 0;
  if (palette && ![3, 8, 15].includes(waves)) throw damaged(name, `a palette ${palette.width} pixels wide`);
  const [low, high] = [await pixels("means", 0), await pixels("means", 1)];
  const gaussians = room(name, count, waves),
    { means, quats, logScales, opacities, constant, rest } = gaussians;
  const { mins, maxs } = meta.means;
  for (let i = 0; i < count; i++)
    for (let k = 0; k < 3; k++) {
      const log = mins[k] + (maxs[k] - mins[k]) * ((low[4 * i + k] | (high[4 * i + k] << 8)) / 65535);
      means[3 * i + k] = Math.sign(log) * Math.expm1(Math.abs(log));
    }
  const looked = (/** @type {any} */ part, /** @type {number} */ byte, /** @type {number} */ k) =>
    part.codebook ? part.codebook[byte] : bound(part.mins, k) + (bound(part.maxs, k) - bound(part.mins, k)) * (byte / 255);
  const [scales, colors, turns] = [await pixels("scales"), await pixels("sh0"), await pixels("quats")];
  for (let i = 0; i < count; i++) {
    for (let k = 0; k < 3; k++) {
      logScales[3 * i + k] = looked(meta.scales, scales[4 * i + k], k);
      constant[3 * i + k] = looked(meta.sh0, colors[4 * i + k], k);
    }
    opacities[i] = first ? sigmoid(looked(meta.sh0, colors[4 * i + 3], 3)) : colors[4 * i + 3] / 255;
    const largest = turns[4 * i + 3] - 252;
    if (largest < 0) {
      quats[4 * i] = 1;
      continue;
    }
    let sum = 0;
    for (let k = 0, n = 0; k < 4; k++) {
      if (k === largest) continue;
      const value = (turns[4 * i + n++] / 255 - 0.5) * Math.SQRT2;
      quats[4 * i + k] = value;
      sum += value * value;
    }
    quats[4 * i + largest] = Math.sqrt(Math.max(0, 1 - sum));
  }
  if (palette) {
    const labels = await pixels("shN", 1),
      entries = palette.data.length / 4 / waves;
    for (let i = 0; i < count; i++) {
      const label = labels[4 * i] | (labels[4 * i + 1] << 8);
      if (label >= entries) throw damaged(name, "a label beyond its palette");
      for (let wave = 0; wave < waves; wave++)
        for (let k = 0; k < 3; k++)
          rest[3 * (waves * i + wave) + k] = looked(meta.shN, palette.data[4 * (waves * label + wave) + k], k);
    }
  }
  return placed(gaussians, true);
}

/** @param {number | number[]} bounds of all axes or of each @param {number} axis */
const bound = (bounds, axis) => (Array.isArray(bounds) ? bounds[axis] : bounds);

/** Pixels of pictures as they are stored: a 2D canvas would multiply colours by opacity, a texture does not. */
class Pictures {
  #gl = document.createElement("canvas").getContext("webgl2");

  /**
   * @param {Uint8Array} file WebP
   * @param {string} name for messages
   * @returns {Promise<{width: number, height: number, data: Uint8Array}>} red, green, blue, opacity, from the top row down
   */
  async pixels(file, name) {
    const gl = this.#gl;
    if (!gl) throw new Error("This browser offers no WebGL 2: update it, or turn on hardware acceleration.");
    const [wide, tall] = sizeOf(file, name),
      most = gl.getParameter(gl.MAX_TEXTURE_SIZE);
    if (wide * tall > PIXELS || wide > most || tall > most)
      throw new Error(`${name} is ${wide} x ${tall} pixels, too large; thin the splats out`);
    const options = /** @type {const} */ ({ premultiplyAlpha: "none", colorSpaceConversion: "none" });
    const bitmap = await createImageBitmap(new Blob([file], { type: "image/webp" }), options).catch(() => {
      throw new Error(`${name} is damaged, copy or export it again`);
    });
    const { width, height } = bitmap,
      data = new Uint8Array(4 * width * height);
    const texture = gl.createTexture(),
      framebuffer = gl.createFramebuffer();
    gl.bindTexture(gl.TEXTURE_2D, texture);
    gl.pixelStorei(gl.UNPACK_PREMULTIPLY_ALPHA_WEBGL, false);
    gl.pixelStorei(gl.UNPACK_COLORSPACE_CONVERSION_WEBGL, gl.NONE);
    gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGBA, gl.RGBA, gl.UNSIGNED_BYTE, bitmap);
    gl.bindFramebuffer(gl.FRAMEBUFFER, framebuffer);
    gl.framebufferTexture2D(gl.FRAMEBUFFER, gl.COLOR_ATTACHMENT0, gl.TEXTURE_2D, texture, 0);
    gl.readPixels(0, 0, width, height, gl.RGBA, gl.UNSIGNED_BYTE, data);
    gl.deleteFramebuffer(framebuffer);
    gl.deleteTexture(texture);
    bitmap.close();
    if (gl.isContextLost()) throw new Error(`${name} could not be read, the graphics card is busy; try again`);
    return { width, height, data };
  }

  dispose() {
    this.#gl?.getExtension("WEBGL_lose_context")?.loseContext();
  }
}

/** Width and height of a WebP, before there is room made for its pixels. @param {Uint8Array} file @param {string} name */
function sizeOf(file, name) {
  const letters = (/** @type {number} */ from) => String.fromCharCode(...file.subarray(from, from + 4));
  const number = (/** @type {number} */ at, /** @type {number} */ bytes) => {
    let value = 0;
    for (let k = bytes - 1; k >= 0; k--) value = value * 256 + file[at + k];
    return value;
  };
  if (file.length < 30 || letters(0) !== "RIFF" || letters(8) !== "WEBP")
    throw new Error(`${name} is no WebP picture, export it again`);
  const kind = letters(12);
  if (kind === "VP8X") return [number(24, 3) + 1, number(27, 3) + 1];
  if (kind === "VP8L") return [(number(21, 4) & 16383) + 1, ((number(21, 4) >> 14) & 16383) + 1];
  return [number(26, 2) & 16383, number(28, 2) & 16383];
}
