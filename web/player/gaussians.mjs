// Gaussians as splat files hold them, in memory, and what all readers of such files share.
//
// Files keep the frame of photogrammetry, +Y down and +Z away; ours is +Y up: half a turn about X lies between them.

/**
 * Unbatched Gaussians in the player's frame: right-handed, +Y up.
 * @typedef {object} Gaussians
 * @property {number} count
 * @property {Float32Array} means 3 each, world units
 * @property {Float32Array} quats 4 each, wxyz, of unit length
 * @property {Float32Array} logScales 3 each, natural logarithms of standard deviations; may be infinite
 * @property {Float32Array} opacities in [0, 1]
 * @property {Float32Array} constant 3 each: the harmonic of degree 0
 * @property {Float32Array} rest 3 x waves each: the harmonics above, one after the other, red green blue
 * @property {number} waves harmonics above degree 0: 0, 3, 8 or 15
 */

/** The harmonic of degree 0. */
export const SH_C0 = 0.28209479177387814;
/** More Gaussians in a file are refused. */
const MOST = 1 << 24;
/** Places and colours beyond are no places and no colours. */
const FARTHEST = 1e9;

/**
 * Room for the Gaussians of a file.
 * @param {string} name of the file, for messages
 * @param {number} count
 * @param {number} waves harmonics above degree 0, of which those to degree 3 are kept
 * @returns {Gaussians}
 */
export function room(name, count, waves) {
  if (!(count > 0)) throw new Error(`${name}: holds no Gaussians, export it again`);
  if (!(count <= MOST)) throw new Error(`${name}: holds ${count} Gaussians, more than ${MOST}; thin it out in a splat editor`);
  const kept = Math.min(waves, 15),
    floats = (/** @type {number} */ each) => new Float32Array(each * count);
  const parts = { means: floats(3), quats: floats(4), logScales: floats(3), opacities: floats(1), constant: floats(3) };
  return { count, ...parts, rest: floats(3 * kept), waves: kept };
}

/** Harmonics above degree 0 of a degree. @param {number} degree */
export const wavesOf = (degree) => (degree + 1) ** 2 - 1;

/** Opacity of a logit. @param {number} logit */
export const sigmoid = (logit) => 1 / (1 + Math.exp(-logit));

/**
 * Rotations of unit length, none in place of zeros; and what a file has with +Y down turned into our frame.
 * @param {Gaussians} gaussians changed in place and returned
 * @param {boolean} turn whether they are +Y down
 */
export function placed(gaussians, turn) {
  const { count, means, quats, rest, waves } = gaussians;
  for (let i = 0, p = 0, q = 0; i < count; i++, p += 3, q += 4) {
    // By the largest entry first: the squares of very large or small ones would leave the floats.
    const most = Math.max(Math.abs(quats[q]), Math.abs(quats[q + 1]), Math.abs(quats[q + 2]), Math.abs(quats[q + 3]));
    let w = 1,
      x = 0,
      y = 0,
      z = 0;
    if (most !== 0) {
      [w, x, y, z] = [quats[q] / most, quats[q + 1] / most, quats[q + 2] / most, quats[q + 3] / most];
      const length = Math.sqrt(w * w + x * x + y * y + z * z);
      [w, x, y, z] = [w / length, x / length, y / length, z / length];
    }
    if (turn) {
      [w, x, y, z] = [-x, w, -z, y];
      means[p + 1] = -means[p + 1];
      means[p + 2] = -means[p + 2];
    }
    quats[q] = w;
    quats[q + 1] = x;
    quats[q + 2] = y;
    quats[q + 3] = z;
  }
  if (turn) {
    const flips = signs(waves);
    for (let i = 0, k = 0; i < count; i++)
      for (let wave = 0; wave < waves; wave++, k += 3)
        if (flips[wave]) for (let channel = 0; channel < 3; channel++) rest[k + channel] = -rest[k + channel];
  }
  return gaussians;
}

/** Which harmonics above degree 0 change their sign by half a turn about X. @param {number} waves */
function signs(waves) {
  const flips = [];
  for (let degree = 1; flips.length < waves; degree++)
    for (let m = -degree; m <= degree; m++) flips.push(((degree + Math.abs(m)) % 2 === 1) !== m < 0);
  return flips;
}

/**
 * Leaves out the Gaussians that hold no numbers, or absurd ones, in any of the frames.
 * @param {Gaussians[]} frames of equally many Gaussians
 * @param {string} name
 * @returns {{frames: Gaussians[], left: number}} and how many were left out
 */
export function sound(frames, name) {
  const { count } = frames[0],
    good = new Uint8Array(count).fill(1);
  for (const frame of frames) {
    const check = (/** @type {Float32Array} */ values, /** @type {number} */ most) => {
      const each = values.length / count;
      for (let i = 0, k = 0; i < count; i++)
        for (let n = 0; n < each; n++, k++) if (!(Math.abs(values[k]) <= most)) good[i] = 0; // NaN is not
    };
    for (const values of [frame.means, frame.constant, frame.rest]) check(values, FARTHEST);
    check(frame.quats, 2);
    check(frame.opacities, 1);
    check(frame.logScales, Infinity);
  }
  const whole = good.reduce((sum, one) => sum + one, 0);
  if (whole === count) return { frames, left: 0 };
  if (!whole)
    throw new Error(`${name}: all its Gaussians hold NaN, infinite or far too large values, repair or export it again`);
  const picked = (/** @type {Float32Array} */ values) => {
    const each = values.length / count,
      out = new Float32Array(each * whole);
    for (let i = 0, to = 0; i < count; i++) if (good[i]) for (let n = 0; n < each; n++) out[to++] = values[i * each + n];
    return out;
  };
  const kept = frames.map(({ waves, means, quats, logScales, opacities, constant, rest }) => ({
    count: whole,
    waves,
    means: picked(means),
    quats: picked(quats),
    logScales: picked(logScales),
    opacities: picked(opacities),
    constant: picked(constant),
    rest: picked(rest),
  }));
  return { frames: kept, left: count - whole };
}

/**
 * Whether frames of equally many Gaussians hold the same ones in the same order, moved: a Gaussian's own step, beyond that of
 * the whole, is a small part of the way to any other.
 * @param {Gaussians[]} frames
 */
export function corresponding(frames) {
  const { count } = frames[0],
    number = Math.min(count, 2000),
    pairs = Math.min(8, frames.length - 1);
  let seed = 1;
  const any = () => Math.floor(((seed = (seed * 48271) % 2147483647) / 2147483647) * count);
  const chosen = Array.from({ length: number }, any),
    other = Array.from({ length: number }, any);
  const middle = (/** @type {number[]} */ values) => values.sort((a, b) => a - b)[values.length >> 1];
  let votes = 0;
  for (let pair = 0; pair < pairs; pair++) {
    const at = Math.round((pair * (frames.length - 2)) / Math.max(1, pairs - 1));
    const [here, there] = [frames[at].means, frames[at + 1].means];
    const steps = (/** @type {number[]} */ to) =>
      chosen.map((i, n) => [0, 1, 2].map((k) => there[3 * to[n] + k] - here[3 * i + k]));
    const own = steps(chosen),
      whole = [0, 1, 2].map((k) => middle(own.map((step) => step[k])));
    const far = (/** @type {number[][]} */ all) =>
      middle(all.map((step) => Math.hypot(...step.map((value, k) => value - whole[k]))));
    if (far(own) <= 0.25 * far(steps(other))) votes++;
  }
  return votes * 2 > pairs;
}
