// Gaussians packed as a play stream has them (core/io/stream.py says how), so that what was dropped plays like any clip.

import { corresponding, SH_C0, sound } from "./gaussians.mjs";
import { homeCamera, toInfo } from "./lens.mjs";
import { Clip, MAX_RECORDS } from "./stream.mjs";

/** @typedef {import("./gaussians.mjs").Gaussians} Gaussians */

const LOG_SCALE = 16; // log scales beyond are as good as flat or endless
/** Changes below are left out. */
const STILL_SCALE = 1e-4,
  STILL_OPACITY = 1e-4,
  STILL_COLOR = 1e-3;
const COLOR_STEPS = [2047, 2047, 1023];
const LEVELS = [31, 31, 31, 127];

/**
 * Packs frames as a clip, and tells of it as a stream does that arrives.
 * @param {Gaussians[]} sets one a frame, equally many Gaussians each
 * @param {{name: string, fps?: number, loop?: boolean}} about name: for messages
 * @param {import("./stream.mjs").StreamEvents} on
 * @param {AbortSignal} [signal]
 * @returns {Promise<Clip>}
 */
export async function pack(sets, { name, fps = 12, loop = false }, on, signal) {
  const uneven = sets.findIndex((set) => set.count !== sets[0].count);
  if (uneven > 0)
    throw new Error(
      `${name}: its frames hold ${sets[0].count} and ${sets[uneven].count} Gaussians (frame ${uneven}), the player takes ` +
        "equally many in each; export the sequence as .a4d with Anchor4D",
    );
  if (sets[0].count * sets.length > MAX_RECORDS)
    throw new Error(`${name}: ${sets[0].count} Gaussians x ${sets.length} frames are too many for the player; thin them out`);
  const { frames, left } = sound(sets, name),
    { count } = frames[0];
  const waves = steadyWaves(frames);
  const spans = measure(frames, waves > 0);
  const header = describe(frames, spans, { fps, loop });
  if (waves) header.harmonics = { coefficients: waves, reach: Math.max(largest(frames[0].rest), 1e-6), place: [0, 0] };
  header.camera = toInfo(homeCamera(header), 1);
  const clip = new Clip(header);
  clip.left = left;
  const steps = shapeSteps(spans, header, count);
  clip.statics = staticWords(spans, header, steps);
  if (waves) clip.harmonics = waveWords(frames[0].rest, header.harmonics.reach);
  on.header?.(clip);
  for (const [index, frame] of frames.entries()) {
    await new Promise((done) => setTimeout(done)); // between frames the page may draw
    signal?.throwIfAborted();
    clip.poses.push(poseWords(frame, header, clip.step));
    clip.extras.push(extraWords(frame, header, steps));
    if (clip.changesColor) clip.colors.push(frameColors(frame, header, waves > 0));
    clip.ready = index + 1;
    on.frame?.(index);
  }
  on.done?.();
  return clip;
}

/** Harmonics above degree 0, where they are the same in all frames. @param {Gaussians[]} frames */
function steadyWaves(frames) {
  const [{ waves, rest }] = frames;
  const steady = frames.every((frame) => frame.waves === waves && frame.rest.every((value, k) => value === rest[k]));
  return steady && largest(rest) > 0 && frames[0].count * waves <= MAX_RECORDS ? waves : 0;
}

/** @param {Float32Array} values */
function largest(values) {
  let most = 0;
  for (const value of values) if (Math.abs(value) > most) most = Math.abs(value);
  return most;
}

/** @param {number} value @param {number} low @param {number} high */
const held = (value, low, high) => (value < low ? low : value > high ? high : value);
/** A colour as it is drawn: not below 0, unless harmonics are added to it. */
const colorOf = (/** @type {number} */ constant, /** @type {boolean} */ waved) => {
  const value = 0.5 + SH_C0 * constant;
  return waved ? value : Math.max(0, value);
};
const scaleOf = (/** @type {number} */ log) => held(log, -LOG_SCALE, LOG_SCALE);

/**
 * What the clip spans: over all, and each Gaussian's own lows and highs.
 * @param {Gaussians[]} frames
 * @param {boolean} waved
 */
function measure(frames, waved) {
  const { count } = frames[0],
    box = { low: [Infinity, Infinity, Infinity], high: [-Infinity, -Infinity, -Infinity] };
  const pair = (/** @type {number} */ each) => ({
    low: new Float32Array(each * count).fill(Infinity),
    high: new Float32Array(each * count).fill(-Infinity),
  });
  const [scales, opacities, colors] = [pair(3), pair(1), pair(3)];
  const widen = (
    /** @type {ReturnType<typeof pair>} */ { low, high },
    /** @type {number} */ k,
    /** @type {number} */ value,
  ) => {
    if (value < low[k]) low[k] = value;
    if (value > high[k]) high[k] = value;
  };
  for (const frame of frames) {
    for (let i = 0; i < count; i++) widen(opacities, i, frame.opacities[i]);
    for (let k = 0; k < 3 * count; k++) {
      const axis = k % 3,
        place = frame.means[k];
      if (place < box.low[axis]) box.low[axis] = place;
      if (place > box.high[axis]) box.high[axis] = place;
      widen(scales, k, scaleOf(frame.logScales[k]));
      widen(colors, k, colorOf(frame.constant[k], waved));
    }
  }
  return { box, scales, opacities, colors };
}

/** @typedef {ReturnType<typeof measure>} Spans */

/**
 * The header of the clip.
 * @param {Gaussians[]} frames
 * @param {Spans} spans
 * @param {{fps: number, loop: boolean}} times
 * @returns {any}
 */
function describe(frames, { box, scales, opacities, colors }, { fps, loop }) {
  const { count } = frames[0];
  const wider = (/** @type {{low: Float32Array, high: Float32Array}} */ { low, high }, /** @type {number} */ still) =>
    low.some((value, k) => high[k] - value > still);
  const shape = wider(scales, STILL_SCALE) || wider(opacities, STILL_OPACITY),
    color = wider(colors, STILL_COLOR);
  let [low, high] = [Infinity, -Infinity];
  for (const value of scales.low) if (value < low) low = value;
  for (const value of scales.high) if (value > high) high = value;
  const step = Math.max(high - low, 1e-6) / 65535,
    tint = { low: [0, 0, 0], step: [0, 0, 0] };
  for (let axis = 0; axis < 3; axis++) {
    let [least, most] = [Infinity, -Infinity];
    for (let k = axis; k < 3 * count; k += 3) {
      if (colors.low[k] < least) least = colors.low[k];
      if (colors.high[k] > most) most = colors.high[k];
    }
    tint.low[axis] = least;
    tint.step[axis] = Math.max(most - least, 1e-6) / COLOR_STEPS[axis];
  }
  const ranges = { scale: 0, opacity: 0 };
  if (shape) {
    // The widest range in 255 steps; each Gaussian's own rounded up, so that it covers its values.
    for (let k = 0; k < 3 * count; k++)
      ranges.scale = Math.max(ranges.scale, scales.high[k] - (low + Math.floor((scales.low[k] - low) / step) * step));
    for (let i = 0; i < count; i++)
      ranges.opacity = Math.max(ranges.opacity, opacities.high[i] - Math.floor(opacities.low[i] * 65535) / 65535);
    ranges.scale /= 255;
    ranges.opacity /= 255;
  }
  return {
    count,
    frames: frames.length,
    fps,
    loop,
    continuous: frames.length < 2 || corresponding(frames),
    front: null,
    placement: placement(frames),
    box: { low: box.low, high: box.high.map((value, k) => Math.max(value, box.low[k] + 65535e-9)) },
    scales: { low, step },
    ranges,
    colors: tint,
    layout: [["pose", 4, 16], ["extra", 1, shape ? 32 : 16], ...(color ? [["color", 1, 32]] : [])],
    pictures: [],
  };
}

/**
 * How many times larger than a unit object at the origin a clip is, and where its middle lies, as core/scene/views.py finds it.
 * @param {Gaussians[]} frames
 */
function placement(frames) {
  const shown = [frames[0], frames[frames.length >> 1], frames[frames.length - 1]].slice(frames.length > 1 ? 0 : 2);
  const any = shown.some(({ opacities }) => opacities.some((opacity) => opacity > 0.1));
  const apart = Math.max(1, Math.floor((frames[0].count * shown.length) / 2 ** 17));
  const ends = [0, 1, 2].map((axis) => {
    const values = /** @type {number[]} */ ([]);
    let n = 0;
    for (const { count, means, opacities } of shown)
      for (let i = 0; i < count; i++) if ((!any || opacities[i] > 0.1) && n++ % apart === 0) values.push(means[3 * i + axis]);
    const sorted = Float32Array.from(values).sort();
    const quantile = (/** @type {number} */ share) => {
      const at = share * (sorted.length - 1),
        below = Math.floor(at),
        above = Math.ceil(at);
      return sorted[below] + (at - below) * (sorted[above] - sorted[below]);
    };
    return [quantile(0.005), quantile(0.995)];
  });
  const scale = Math.max(...ends.map(([low, high]) => high - low));
  const far = Math.max(...ends.flat().map(Math.abs));
  if (scale < 1e-6 || (scale > 0.5 && far < 0.6)) return { scale: 1, center: [0, 0, 0] };
  return { scale, center: ends.map(([low, high]) => (low + high) / 2) };
}

/**
 * Where each Gaussian's scales and opacity begin, and how far they reach, in steps: 8 numbers a Gaussian.
 * @param {Spans} spans
 * @param {any} header
 * @param {number} count
 */
function shapeSteps({ scales, opacities }, header, count) {
  const {
      scales: { low, step },
      ranges,
      layout,
    } = header,
    changes = layout[1][2] === 32;
  const widths = [ranges.scale / step, ranges.opacity * 65535],
    out = new Float64Array(8 * count);
  for (let i = 0; i < count; i++)
    for (let k = 0; k < 4; k++) {
      const from = k < 3 ? (scales.low[3 * i + k] - low) / step : opacities.low[i] * 65535;
      const to = k < 3 ? (scales.high[3 * i + k] - low) / step : opacities.high[i] * 65535,
        width = widths[k < 3 ? 0 : 1];
      const base = changes ? Math.floor(from) : Math.round((from + to) / 2);
      out[8 * i + k] = held(base, 0, 65535);
      out[8 * i + 4 + k] = changes ? held(Math.ceil((to - base) / Math.max(width, 1e-12) - 1e-9), 0, 255) : 0;
    }
  return out;
}

/** @param {Spans} spans @param {any} header @param {Float64Array} steps @returns {Uint32Array} 4 words a Gaussian */
function staticWords(spans, header, steps) {
  const out = new Uint32Array(steps.length / 2),
    { low, high } = spans.colors;
  for (let i = 0, s = 0; s < steps.length; i++, s += 8) {
    const color = [0, 1, 2].map((k) => (low[3 * i + k] + high[3 * i + k]) / 2);
    out[4 * i] = steps[s] | (steps[s + 1] << 16);
    out[4 * i + 1] = steps[s + 2] | (steps[s + 3] << 16);
    out[4 * i + 2] = colorWord(color, header.colors);
    out[4 * i + 3] = steps[s + 4] | (steps[s + 5] << 8) | (steps[s + 6] << 16) | (steps[s + 7] << 24);
  }
  return out;
}

/** @param {number[]} color @param {{low: number[], step: number[]}} colors */
function colorWord(color, { low, step }) {
  const [r, g, b] = color.map((value, k) => held(Math.round((value - low[k]) / step[k]), 0, COLOR_STEPS[k]));
  return ((r << 21) | (g << 10) | b) >>> 0;
}

/** @param {Gaussians} frame @param {any} header @param {boolean} waved @returns {Uint32Array} */
function frameColors({ count, constant }, { colors }, waved) {
  return Uint32Array.from({ length: count }, (_, i) =>
    colorWord(
      [0, 1, 2].map((k) => colorOf(constant[3 * i + k], waved)),
      colors,
    ),
  );
}

/**
 * A rotation's word: which entry is largest, the three others in so many bits.
 * @param {Float32Array} quats
 * @param {number} q where it begins
 * @param {number} bits
 */
function rotationWord(quats, q, bits) {
  let most = 0;
  for (let k = 1; k < 4; k++) if (Math.abs(quats[q + k]) > Math.abs(quats[q + most])) most = k;
  const middle = (1 << (bits - 1)) - 1,
    scale = middle * Math.SQRT2 * (quats[q + most] < 0 ? -1 : 1);
  let word = most;
  for (let k = 0; k < 4; k++)
    if (k !== most) word = (word << bits) | held(Math.round(quats[q + k] * scale) + middle, 0, 2 * middle);
  return word >>> 0;
}

/** @param {any} header */
const rotationBits = (header) => (header.layout[1][2] === 32 ? 8 : 10);

/** @param {Gaussians} frame @param {any} header @param {number[]} step @returns {Uint16Array} 4 words a Gaussian */
function poseWords({ count, means, quats }, header, step) {
  const out = new Uint16Array(4 * count),
    { low } = header.box,
    bits = rotationBits(header);
  for (let i = 0; i < count; i++) {
    for (let k = 0; k < 3; k++) out[4 * i + k] = held(Math.round((means[3 * i + k] - low[k]) / step[k]), 0, 65535);
    out[4 * i + 3] = rotationWord(quats, 4 * i, bits) & 65535;
  }
  return out;
}

/** @param {Gaussians} frame @param {any} header @param {Float64Array} steps @returns {Uint16Array | Uint32Array} a word each */
function extraWords({ count, quats, logScales, opacities }, header, steps) {
  const bits = rotationBits(header),
    changes = bits === 8,
    out = changes ? new Uint32Array(count) : new Uint16Array(count);
  const {
      scales: { low, step },
      ranges,
    } = header,
    widths = [ranges.scale / step, ranges.opacity * 65535];
  for (let i = 0; i < count; i++) {
    let word = rotationWord(quats, 4 * i, bits) >>> 16;
    if (changes)
      for (let k = 0, shift = 10; k < 4; k++, shift += 5) {
        const wanted = (k < 3 ? (scaleOf(logScales[3 * i + k]) - low) / step : opacities[i] * 65535) - steps[8 * i + k];
        const width = steps[8 * i + 4 + k] * widths[k < 3 ? 0 : 1];
        word |= (width > 0 ? held(Math.round((wanted * LEVELS[k]) / width), 0, LEVELS[k]) : 0) << shift;
      }
    out[i] = word;
  }
  return out;
}

/** @param {Float32Array} rest @param {number} reach @returns {Uint32Array} a word a harmonic */
function waveWords(rest, reach) {
  const out = new Uint32Array(rest.length / 3),
    part = (/** @type {number} */ k) => Math.round((rest[k] / reach) * 511) + 511;
  for (let n = 0, k = 0; n < out.length; n++, k += 3) out[n] = (part(k) << 20) | (part(k + 1) << 10) | part(k + 2);
  return out;
}
