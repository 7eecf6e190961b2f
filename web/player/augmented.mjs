// The object in the user's own room, by WebXR: through a headset or a telephone, an eye or two at a time.

/** @typedef {import("./renderer.mjs").Renderer} Renderer */
/** @typedef {import("./renderer.mjs").Shot} Shot */

/** Metres: the object's longest side, how far before the viewer its middle stands, and how far below the eyes. */
export const LENGTH = 0.3,
  AHEAD = 0.5,
  BELOW = 0.1;

/** Whether this browser and device offer it. @returns {Promise<boolean>} */
export async function offered() {
  const { xr } = /** @type {any} */ (navigator);
  return Boolean(await xr?.isSessionSupported?.("immersive-ar").catch(() => false));
}

/**
 * @typedef {object} On
 * @property {(now: number) => Shot | null} shot what to draw now; its camera is not looked at; null where there is nothing yet
 * @property {() => void} select the user has tapped or pulled the trigger
 * @property {() => void} ended it is over, whoever has ended it
 */

export class Augmented {
  /** @type {any} */ #session = null;
  /** @type {any} */ #layer = null;
  /** @type {any} */ #space = null;
  /** @type {?{yaw: number, place: number[]}} where the object stands in the room */ #placed = null;

  /** Whether it is on, or about to be. */
  get busy() {
    return Boolean(this.#session);
  }

  /**
   * Begins; call it in the event of a click. It rejects where the user or the device refuses.
   * @param {Renderer} renderer
   * @param {{scale: number, center: number[]}} placement how large the object is and where its middle lies, world units
   * @param {On} on
   */
  async start(renderer, placement, on) {
    const session = await /** @type {any} */ (navigator).xr.requestSession("immersive-ar", { requiredFeatures: ["local"] });
    this.#session = session;
    session.addEventListener("end", () => {
      this.#session = this.#layer = this.#space = this.#placed = null;
      renderer.leaveViews();
      on.ended();
    });
    session.addEventListener("select", () => on.select());
    try {
      const gl = await renderer.compatible();
      this.#layer = new /** @type {any} */ (globalThis).XRWebGLLayer(session, gl);
      session.updateRenderState({ baseLayer: this.#layer });
      this.#space = await session.requestReferenceSpace("local");
    } catch (error) {
      this.end();
      throw error;
    }
    const frame = (/** @type {number} */ now, /** @type {any} */ seen) => {
      if (session !== this.#session) return;
      session.requestAnimationFrame(frame);
      const pose = seen.getViewerPose(this.#space),
        shot = on.shot(now);
      if (!pose || !shot) return;
      this.#placed ??= before(pose.transform.matrix);
      const views = pose.views.map((/** @type {any} */ view) => {
        const { x, y, width, height } = this.#layer.getViewport(view);
        const { yaw, place } = /** @type {{yaw: number, place: number[]}} */ (this.#placed);
        const camera = eye(view, { scale: LENGTH / placement.scale, center: placement.center, yaw, place }, width, height);
        return { x, y, width, height, camera };
      });
      renderer.drawViews(shot, views, this.#layer.framebuffer);
    };
    session.requestAnimationFrame(frame);
  }

  /** Ends it. */
  end() {
    this.#session?.end().catch(() => {}); // it is over already
  }
}

/** Before a viewer, upright and turned to them. @param {ArrayLike<number>} m the viewer's pose, column by column */
function before(m) {
  // Forward is -Z; who looks straight down has the top of the head ahead.
  const level = Math.hypot(m[8], m[10]) > 0.1 ? [-m[8], -m[10]] : [m[4] * Math.sign(m[9] || 1), m[6] * Math.sign(m[9] || 1)];
  const length = Math.hypot(...level) || 1,
    [x, z] = level.map((value) => value / length);
  return { yaw: Math.atan2(-x, -z), place: [m[12] + AHEAD * x, m[13] - BELOW, m[14] + AHEAD * z] };
}

/**
 * What an eye sees of the object, as the renderer draws it: in the object's own units.
 * @param {any} view XRView
 * @param {{scale: number, center: number[], yaw: number, place: number[]}} stands metres a world unit; the object's middle in
 *   world units and in the room; its turn about the vertical, radians
 * @param {number} width pixels
 * @param {number} height
 * @returns {import("./camera.mjs").View}
 */
export function eye({ transform, projectionMatrix: p }, { scale, center, yaw, place }, width, height) {
  const v = transform.inverse.matrix,
    out = new Float32Array(16),
    [s, c] = [Math.sin(yaw), Math.cos(yaw)];
  const turn = [
    [c, 0, s],
    [0, 1, 0],
    [-s, 0, c],
  ];
  for (let row = 0; row < 3; row++) {
    const sign = row ? -1 : 1; // from x right, y up, z back to x right, y down, z forward
    let shift = v[12 + row];
    for (let k = 0; k < 3; k++) shift += v[4 * k + row] * place[k];
    let moved = (sign * shift) / scale;
    for (let column = 0; column < 3; column++) {
      let value = 0;
      for (let k = 0; k < 3; k++) value += v[4 * k + row] * turn[k][column];
      out[4 * row + column] = sign * value;
      moved -= sign * value * center[column];
    }
    out[4 * row + 3] = moved;
  }
  out[15] = 1;
  const fx = (width / 2) * p[0],
    fy = (height / 2) * p[5];
  return { worldToCamera: out, fx, fy, cx: (width / 2) * (1 - p[8]), cy: (height / 2) * (1 + p[9]) };
}
