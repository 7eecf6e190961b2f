// What is shown, as files: a picture (PNG) and a film (WebM), both with transparency where the background has it.

import { webm } from "./webm.mjs";

/** Frames between two that decode by themselves. */
const KEY_EVERY = 48;
/** Bits a pixel and frame. */
const QUALITY = 0.18;

/** @param {Blob} blob @param {string} name */
export function download(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

/** Saves what the canvas shows: call it in the task that drew it. @param {HTMLCanvasElement} canvas @param {string} name */
export async function savePicture(canvas, name) {
  const blob = await new Promise((done) => canvas.toBlob(done, "image/png"));
  if (!blob) throw new Error("this browser gave no picture");
  download(blob, name);
}

/**
 * @typedef {object} Film
 * @property {HTMLCanvasElement} canvas
 * @property {string} name of the file
 * @property {number} seconds
 * @property {number} fps
 * @property {boolean} transparent
 * @property {(share: number) => Promise<void>} draw the film's moment, 0 to 1; the canvas is read in the same task
 * @property {(done: number, all: number) => void} progress
 * @property {AbortSignal} signal
 */

/** Saves a film: drawn frame by frame where the browser has an encoder, else as it plays. @param {Film} film */
export async function saveFilm(film) {
  const codec = await encoding(film.canvas);
  const blob = codec ? await encoded(film, codec) : await recorded(film);
  download(blob, film.name);
  return blob;
}

/** Even sizes: every decoder takes them. @param {HTMLCanvasElement} canvas */
const even = ({ width, height }) => ({ width: width - (width % 2), height: height - (height % 2) });

/** @param {HTMLCanvasElement} canvas @returns {Promise<VideoEncoderConfig | null>} */
async function encoding(canvas) {
  if (typeof VideoEncoder === "undefined") return null;
  const { width, height } = even(canvas);
  for (const codec of ["vp09.00.41.08", "vp8"]) {
    const config = { codec, width, height, bitrate: 1e6, latencyMode: /** @type {const} */ ("quality") };
    const { supported } = await VideoEncoder.isConfigSupported(config).catch(() => ({ supported: false }));
    if (supported) return config;
  }
  return null;
}

/** @param {Film} film @param {VideoEncoderConfig} config @returns {Promise<Blob>} */
async function encoded({ canvas, seconds, fps, transparent, draw, progress, signal }, config) {
  const { width, height } = even(canvas);
  const count = Math.max(1, Math.round(seconds * fps));
  const context = /** @type {CanvasRenderingContext2D} */ (
    new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true })
  );
  /** @type {Error | null} */
  let failure = null;
  const tracks = (transparent ? [0, 1] : [0]).map(() => {
    /** @type {{data: Uint8Array, time: number, key: boolean}[]} */
    const packets = [];
    const encoder = new VideoEncoder({
      output: (chunk) => {
        const data = new Uint8Array(chunk.byteLength);
        chunk.copyTo(data);
        packets.push({ data, time: Math.round(chunk.timestamp / 1000), key: chunk.type === "key" });
      },
      error: (error) => (failure = error),
    });
    encoder.configure({ ...config, bitrate: Math.max(2e5, QUALITY * width * height * fps), framerate: fps });
    return { packets, encoder };
  });
  try {
    for (let i = 0; i < count; i++) {
      signal.throwIfAborted();
      if (failure) throw failure;
      await draw(i / count);
      context.clearRect(0, 0, width, height);
      context.drawImage(canvas, 0, 0);
      const { data } = context.getImageData(0, 0, width, height);
      tracks.forEach(({ encoder }, track) => {
        const pixels = track ? opacity(data) : opaque(data);
        const frame = new VideoFrame(pixels, {
          format: "RGBX",
          codedWidth: width,
          codedHeight: height,
          timestamp: Math.round((1e6 * i) / fps),
          duration: Math.round(1e6 / fps),
        });
        encoder.encode(frame, { keyFrame: i % KEY_EVERY === 0 });
        frame.close();
      });
      progress(i + 1, count);
      do await new Promise((done) => setTimeout(done));
      while (tracks.some(({ encoder }) => encoder.encodeQueueSize > 4) && !failure);
    }
    await Promise.all(tracks.map(({ encoder }) => encoder.flush()));
    if (failure) throw failure;
  } finally {
    for (const { encoder } of tracks) if (encoder.state !== "closed") encoder.close();
  }
  const packets = tracks[0].packets.map((packet, i) => ({ ...packet, alpha: tracks[1]?.packets[i].data ?? null }));
  return webm(packets, { width, height, fps, codec: config.codec === "vp8" ? "V_VP8" : "V_VP9" });
}

/** The colours alone; straight ones, as a film with an opacity track has them. @param {Uint8ClampedArray} data */
function opaque(data) {
  const pixels = new Uint8Array(data);
  for (let i = 3; i < pixels.length; i += 4) pixels[i] = 255;
  return pixels;
}

/** The opacity as grey. @param {Uint8ClampedArray} data */
function opacity(data) {
  const pixels = new Uint8Array(data.length);
  for (let i = 0; i < pixels.length; i += 4) pixels[i] = pixels[i + 1] = pixels[i + 2] = data[i + 3];
  return pixels;
}

/** Without an encoder: the canvas as it plays. @param {Film} film @returns {Promise<Blob>} */
async function recorded({ canvas, seconds, fps, draw, progress, signal }) {
  if (typeof MediaRecorder === "undefined") throw new Error("this browser cannot record films, use another or Render Scene");
  const stream = canvas.captureStream();
  const recorder = new MediaRecorder(stream, {
    videoBitsPerSecond: Math.max(2e5, QUALITY * canvas.width * canvas.height * fps),
  });
  /** @type {Blob[]} */
  const parts = [];
  recorder.addEventListener("dataavailable", (event) => parts.push(event.data));
  const stopped = new Promise((done) => recorder.addEventListener("stop", done));
  recorder.start();
  const start = performance.now();
  for (let share = 0; share < 1; share = (performance.now() - start) / 1000 / seconds) {
    await draw(share);
    progress(Math.round(share * seconds * fps), Math.round(seconds * fps));
    await new Promise((done) => requestAnimationFrame(done));
    if (signal.aborted) break;
  }
  recorder.stop();
  await stopped;
  for (const track of stream.getTracks()) track.stop();
  signal.throwIfAborted();
  return new Blob(parts, { type: recorder.mimeType });
}
