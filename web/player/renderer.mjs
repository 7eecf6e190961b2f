// Draws moving Gaussians with WebGL2. All frames of a clip lie in textures, time is a uniform, neighbouring frames are mixed in
// the vertex shader; a frame drawn uploads nothing but an order, where a new one came.

import { makeView, view } from "./camera.mjs";
import { ROW, shaders } from "./shaders.mjs";
import { Sorter } from "./sort.mjs";

const MAX_AGE = 2; // drawn frames

/**
 * @typedef {object} Shot what to draw
 * @property {import("./camera.mjs").OrbitCamera | import("./camera.mjs").View} camera
 * @property {number[]} time position in frames for each slot, between whole numbers mixed; a looping clip goes on to frame 0
 * @property {number[]} [background] r, g, b, a in [0, 1], straight; transparent where absent
 * @property {"splats" | "points" | "ellipsoids"} [mode]
 * @property {?number} [split] where slot 0, on its left, ends and slot 1 begins, in parts of the width; null: slot 0 alone
 */

/** Draws one clip, or two in a split view, on a canvas. Its context is made when there is first something to draw. */
export class Renderer {
  /** Figures for tests and the curious; times in milliseconds. */
  stats = {
    drawn: 0, // pictures
    held: 0, // calls of draw that waited for an order
    scriptMs: 0, // of the last draw
    orders: 0,
    sortMs: 0, // of the last order
    maxSortMs: 0,
    orderAge: 0, // of the last picture, in pictures
    maxOrderAge: 0,
    uploads: 0, // of orders: all that drawing ever uploads
    halfFloat: false, // whether colours add up in half floats; else in 8 bits
    localSort: false, // whether the page's own thread sorts, for want of a worker
  };

  #canvas;
  #on;
  #gl = null;
  #lost = false;
  #disposed = false;
  #sorter = null;
  #slots = [null, null];
  #programs = new Map();
  #target = null; // what is drawn into before the background: { framebuffer, picture, depth, width, height }
  #small = null; // the same of small pictures, and what they are read from: { ...target, framebuffer8, picture8 }
  #eye = null; // the same of an eye of a headset
  #limits = null; // { size, layers }
  #width = 0;
  #height = 0;
  #view = makeView();
  #shot = null; // the last one drawn
  #serial = 0; // pictures drawn
  #waiting = []; // calls of drawSorted
  #background = new Float32Array(4);
  #slab = new Float32Array(2);

  /**
   * @param {HTMLCanvasElement | OffscreenCanvas} canvas for this renderer alone
   * @param {{onLost?: () => void, onRestored?: () => void, onOrder?: () => void}} [on] the context is lost; it is back, the
   *   next draw uploads all again; a newer order is there, so that a picture standing still gets better when drawn again
   */
  constructor(canvas, on = {}) {
    this.#canvas = canvas;
    this.#on = on;
    canvas.addEventListener("webglcontextlost", this.#contextLost);
    canvas.addEventListener("webglcontextrestored", this.#contextRestored);
  }

  /** Whether the picture last drawn was in the exact order of its own moment. */
  get settled() {
    return this.#slots.every((slot) => !slot?.drawn || slot.exact);
  }

  /** Whether the context is lost just now. */
  get lost() {
    return this.#lost;
  }

  /**
   * Shows a clip, with the frames that are there; tell later ones by {@link frameArrived}. Throws where it cannot fit.
   * @param {0 | 1} slot
   * @param {?import("./stream.mjs").Clip} clip
   */
  setClip(slot, clip) {
    this.#free(this.#slots[slot]);
    this.#slots[slot] = null;
    if (this.#disposed || (!clip && !this.#sorter)) return;
    this.#sorter ??= new Sorter(this.#ordered);
    this.#sorter.setClip(slot, clip);
    this.stats.localSort = this.#sorter.local;
    if (!clip) return this.#settle();
    const fresh = { clip, ready: clip.ready, gpu: null, drawn: false, age: 0, exact: false, order: null, fresh: false };
    fresh.asked = { serial: 0, first: -1, next: 0, blend: 0, x: 0, y: 0, z: 0 }; // of the order under way
    fresh.have = { ...fresh.asked }; // of the newest order there
    this.#slots[slot] = fresh;
  }

  /** A frame of a slot's clip has arrived. */
  frameArrived(slot, index) {
    const held = this.#slots[slot];
    if (!held || index < held.ready) return;
    held.ready = index + 1;
    this.#sorter.addFrame(slot, index);
    if (held.gpu) this.#uploadFrame(held, index);
  }

  /** Sets the picture's size in device pixels; zero is fine and draws nothing. */
  resize(width, height) {
    const limit = this.#limits?.size ?? 8192;
    this.#width = Math.min(Math.max(0, Math.round(width)), limit);
    this.#height = Math.min(Math.max(0, Math.round(height)), limit);
    if (this.#canvas.width !== this.#width) this.#canvas.width = this.#width;
    if (this.#canvas.height !== this.#height) this.#canvas.height = this.#height;
  }

  /**
   * Draws. False where nothing could be drawn or the only order there is older than two drawn frames: the canvas keeps its
   * picture, call again with the next frame of the display. Throws where WebGL2 is missing or the clip does not fit.
   * @param {Shot} shot
   */
  draw(shot) {
    const begin = performance.now();
    if (this.#disposed || this.#lost || !this.#width || !this.#height || !this.#begin()) return false;
    const camera = this.#look(shot.camera), splats = (shot.mode ?? "splats") === "splats";
    const divided = shot.split !== null && shot.split !== undefined;
    this.#shot = shot;
    let current = true;
    for (let k = 0; k < 2; k++) {
      const slot = this.#slots[k];
      if (!slot) continue;
      slot.drawn = slot.ready > 0 && (k === 0 || divided);
      if (slot.drawn) this.#place(slot, shot.time[k]);
      if (slot.drawn && !this.#keepOrder(k, slot, camera.worldToCamera) && splats) current = false;
    }
    if (!current) {
      this.stats.held++;
      return false;
    }
    this.stats.drawn++;
    this.#serial++;
    const gl = this.#gl, edge = divided ? Math.round(Math.min(Math.max(shot.split, 0), 1) * this.#width) : this.#width;
    this.#into(this.#target);
    gl.enable(gl.SCISSOR_TEST);
    this.stats.orderAge = 0;
    for (let k = 0; k < 2; k++) {
      const slot = this.#slots[k], from = k === 0 ? 0 : edge, width = k === 0 ? edge : this.#width - edge;
      if (!slot?.drawn || !width) continue;
      gl.scissor(from, 0, width, this.#height);
      this.#drawSlot(slot, shot.mode ?? "splats", camera);
      if (splats && slot.age > this.stats.orderAge) this.stats.orderAge = slot.age;
    }
    if (this.stats.orderAge > this.stats.maxOrderAge) this.stats.maxOrderAge = this.stats.orderAge;
    this.#present(shot.background);
    this.stats.scriptMs = performance.now() - begin;
    return true;
  }

  /**
   * Draws in the exact order of this very moment: for pictures and films. Read the canvas before the next await. Resolves to
   * false where nothing could be drawn.
   * @param {Shot} shot
   */
  async drawSorted(shot) {
    while (!this.#disposed && !this.#lost && this.#width && this.#height) {
      const held = this.stats.held;
      if (this.draw(shot)) {
        if (this.settled || (shot.mode ?? "splats") !== "splats") return true;
      } else if (this.stats.held === held) return false;
      await new Promise((resolve) => this.#waiting.push(resolve));
    }
    return false;
  }

  /** Makes the context fit for a headset. @returns {Promise<WebGL2RenderingContext>} */
  async compatible() {
    if (!this.#begin()) throw new Error("there is nothing to draw yet");
    await this.#gl.makeXRCompatible();
    return this.#gl;
  }

  /**
   * Draws what each eye sees of the first clip into a framebuffer of somebody else's, without a background, in one order for both.
   * False where nothing could be drawn.
   * @param {Shot} shot its camera is not looked at
   * @param {{camera: import("./camera.mjs").View, x: number, y: number, width: number, height: number}[]} views and their place,
   *   pixels from the lower left corner
   * @param {?WebGLFramebuffer} framebuffer
   */
  drawViews(shot, views, framebuffer) {
    const slot = this.#slots[0], ahead = new Float32Array(11);
    if (this.#disposed || this.#lost || !slot?.ready || !views.length || !this.#begin()) return false;
    for (const { camera } of views) for (let k = 8; k < 11; k++) ahead[k] += camera.worldToCamera[k] / views.length;
    const gl = this.#gl;
    this.#place(slot, shot.time[0]);
    this.#keepOrder(0, slot, ahead); // an old order is better than a headset's picture that stands still
    this.stats.drawn++;
    this.#serial++;
    gl.bindFramebuffer(gl.FRAMEBUFFER, framebuffer);
    gl.disable(gl.SCISSOR_TEST);
    gl.clear(gl.COLOR_BUFFER_BIT | gl.DEPTH_BUFFER_BIT);
    for (const { camera, x, y, width, height } of views) {
      if (!width || !height) continue;
      if (this.#eye?.width !== width || this.#eye?.height !== height) {
        this.#freeTarget(this.#eye);
        this.#eye = this.#makeTarget(width, height);
      }
      this.#into(this.#eye);
      this.#drawSlot(slot, shot.mode ?? "splats", camera, this.#eye);
      this.#present(null, this.#eye, framebuffer, x, y);
    }
    return true;
  }

  /** Frees what drawing for a headset has taken. */
  leaveViews() {
    if (this.#eye && !this.#lost && !this.#disposed) this.#freeTarget(this.#eye);
    this.#eye = null;
  }

  /** The picture last drawn, premultiplied by alpha, from the top row down; null where there is none. */
  pixels() {
    if (!this.#target || !this.#shot || this.#lost) return null;
    const gl = this.#gl, { width, height } = this.#target, row = width * 4;
    this.#present(this.#shot.background);
    const flipped = new Uint8Array(row * height), data = new Uint8ClampedArray(row * height);
    gl.readPixels(0, 0, width, height, gl.RGBA, gl.UNSIGNED_BYTE, flipped);
    for (let y = 0; y < height; y++) data.set(flipped.subarray((height - 1 - y) * row, (height - y) * row), y * row);
    return { width, height, data };
  }

  /**
   * A small picture of one moment of the first clip, drawn aside: sorted by the worker, and read when the graphics card is done
   * with it, so that nobody waits.
   * @param {Shot} shot
   * @param {number} width pixels
   * @param {number} height
   * @returns {Promise<?ImageData>} null where nothing can be drawn
   */
  async thumbnail(shot, width, height) {
    const slot = this.#slots[0];
    if (this.#disposed || !slot?.ready) return null;
    const camera = shot.camera.worldToCamera ? shot.camera : view(shot.camera, width, height);
    const [x, y, z] = camera.worldToCamera.slice(8, 11), aside = { ...slot };
    this.#place(aside, shot.time[0]);
    const { first, next, blend } = aside, order = await this.#sorter.aside(0, { first, next, blend, x, y, z });
    const gone = this.#disposed || this.#lost || slot !== this.#slots[0] || !this.#width || !this.#height;
    if (!order || gone || !this.#begin()) return null;
    const gl = this.#gl;
    if (this.#small?.width !== width || this.#small?.height !== height) this.#makeSmall(width, height);
    const small = this.#small, { gpu } = slot;
    gpu.aside ??= this.#makeOrder(slot.clip.count);
    gl.bindBuffer(gl.ARRAY_BUFFER, gpu.aside.order);
    gl.bufferSubData(gl.ARRAY_BUFFER, 0, order);
    this.#into(small);
    this.#drawSlot({ ...aside, gpu }, shot.mode ?? "splats", camera, small, gpu.aside.array);
    this.#present(shot.background, small, small.framebuffer8);
    const pixels = gl.createBuffer();
    gl.bindBuffer(gl.PIXEL_PACK_BUFFER, pixels);
    gl.bufferData(gl.PIXEL_PACK_BUFFER, 4 * width * height, gl.STREAM_READ);
    gl.readPixels(0, 0, width, height, gl.RGBA, gl.UNSIGNED_BYTE, 0);
    gl.bindBuffer(gl.PIXEL_PACK_BUFFER, null);
    const done = gl.fenceSync(gl.SYNC_GPU_COMMANDS_COMPLETE, 0);
    gl.flush();
    do await new Promise((resolve) => setTimeout(resolve, 4));
    while (!this.#lost && !this.#disposed && gl.clientWaitSync(done, 0, 0) === gl.TIMEOUT_EXPIRED);
    gl.deleteSync(done);
    const flipped = new Uint8Array(4 * width * height), picture = new ImageData(width, height);
    if (!this.#lost && !this.#disposed) {
      gl.bindBuffer(gl.PIXEL_PACK_BUFFER, pixels);
      gl.getBufferSubData(gl.PIXEL_PACK_BUFFER, 0, flipped);
      gl.bindBuffer(gl.PIXEL_PACK_BUFFER, null);
    }
    gl.deleteBuffer(pixels);
    if (this.#lost || this.#disposed) return null;
    for (let y = 0; y < height; y++)
      for (let x = 0; x < width; x++) {
        const from = 4 * ((height - 1 - y) * width + x), to = 4 * (y * width + x), alpha = flipped[from + 3];
        for (let k = 0; k < 3; k++) picture.data[to + k] = alpha ? (flipped[from + k] * 255) / alpha : 0;
        picture.data[to + 3] = alpha;
      }
    return picture;
  }

  /**
   * The point of the object seen at a pixel of the picture last drawn; null where there is nothing.
   * @param {number} x pixels from the left
   * @param {number} y pixels from the top
   * @returns {?number[]}
   */
  pick(x, y) {
    const shot = this.#shot;
    if (!shot || this.#lost || !this.#target || x < 0 || y < 0 || x >= this.#width || y >= this.#height) return null;
    const divided = shot.split !== null && shot.split !== undefined;
    const slot = this.#slots[divided && x >= shot.split * this.#width ? 1 : 0];
    if (!slot?.drawn) return null;
    const gl = this.#gl, { low, header } = slot.clip;
    const camera = this.#look(shot.camera), { worldToCamera: m, fx, fy, cx, cy } = camera;
    const span = header.box.high.map((high, k) => high - low[k]);
    let nearest = m[8] * low[0] + m[9] * low[1] + m[10] * low[2] + m[11], reach = 1e-6;
    for (let k = 0; k < 3; k++) {
      nearest += Math.min(m[8 + k] * span[k], 0);
      reach += Math.abs(m[8 + k] * span[k]);
    }
    gl.bindFramebuffer(gl.FRAMEBUFFER, this.#target.framebuffer);
    gl.viewport(0, 0, this.#width, this.#height);
    const column = Math.floor(x), row = this.#height - 1 - Math.floor(y);
    gl.enable(gl.SCISSOR_TEST);
    gl.scissor(column, row, 1, 1);
    gl.clear(gl.COLOR_BUFFER_BIT);
    this.#slab.set([nearest, reach]);
    this.#drawSlot(slot, "splats", camera);
    this.#slab.fill(0);
    const found = this.stats.halfFloat ? new Float32Array(4) : new Uint8Array(4);
    gl.readPixels(column, row, 1, 1, gl.RGBA, this.stats.halfFloat ? gl.FLOAT : gl.UNSIGNED_BYTE, found);
    if (found[3] < (this.stats.halfFloat ? 0.1 : 25)) return null;
    const z = nearest + (found[0] / found[3]) * reach;
    const seen = [((x - cx) / fx) * z - m[3], ((y - cy) / fy) * z - m[7], z - m[11]];
    return [0, 1, 2].map((k) => m[k] * seen[0] + m[4 + k] * seen[1] + m[8 + k] * seen[2]);
  }

  /** Frees everything, the context included: browsers allow few of them. The canvas cannot be used again. */
  dispose() {
    if (this.#disposed) return;
    this.#disposed = true;
    this.#canvas.removeEventListener("webglcontextlost", this.#contextLost);
    this.#canvas.removeEventListener("webglcontextrestored", this.#contextRestored);
    this.#sorter?.dispose();
    this.#slots = [null, null];
    this.#gl?.getExtension("WEBGL_lose_context")?.loseContext();
    this.#gl = this.#target = this.#small = this.#eye = this.#shot = null;
    this.#settle();
  }

  // Orders

  #ordered = (k, order, ms) => {
    const slot = this.#slots[k];
    slot.order = order;
    slot.fresh = true;
    [slot.have, slot.asked] = [slot.asked, slot.have];
    const stats = this.stats;
    stats.orders++;
    stats.sortMs = ms;
    stats.maxSortMs = Math.max(stats.maxSortMs, ms);
    this.#settle();
    this.#on.onOrder?.();
  };

  /** Lets those that wait for an order look again. */
  #settle() {
    for (const resolve of this.#waiting.splice(0)) resolve();
  }

  /** Uploads an order that came, asks for the next; false where what is there is too old to draw. */
  #keepOrder(k, slot, m) {
    const serial = this.#serial + 1;
    if (slot.fresh) this.#uploadOrder(slot);
    if (!same(slot.have, slot, m) && this.#sorter.idle(k)) {
      const asked = slot.asked;
      asked.serial = serial;
      asked.first = slot.first;
      asked.next = slot.next;
      asked.blend = slot.blend;
      asked.x = m[8];
      asked.y = m[9];
      asked.z = m[10];
      this.#sorter.request(k, asked);
      if (slot.fresh) this.#uploadOrder(slot); // sorted at once where there is no worker
    }
    if (slot.have.first < 0) return false;
    slot.exact = same(slot.have, slot, m);
    slot.age = slot.exact ? 0 : serial - slot.have.serial;
    return slot.age <= MAX_AGE;
  }

  #uploadOrder(slot) {
    const gl = this.#gl;
    gl.bindBuffer(gl.ARRAY_BUFFER, slot.gpu.order);
    gl.bufferSubData(gl.ARRAY_BUFFER, 0, slot.order);
    slot.fresh = false;
    this.stats.uploads++;
  }

  // Drawing

  #look(camera) {
    return camera.worldToCamera ? camera : view(camera, this.#width, this.#height, this.#view);
  }

  /** Finds the two frames around a time, among those that are there. */
  #place(slot, time) {
    const { clip, ready } = slot, wraps = clip.loop && ready === clip.frames, last = ready - 1;
    const t = wraps ? ((time % ready) + ready) % ready : Math.min(Math.max(time, 0), last);
    slot.first = Math.min(Math.floor(t) || 0, last);
    slot.next = slot.first < last ? slot.first + 1 : wraps ? 0 : last;
    slot.blend = clip.continuous ? t - slot.first || 0 : 0;
  }

  /** Empties what is drawn into from now on. */
  #into({ framebuffer, width, height }) {
    const gl = this.#gl;
    gl.bindFramebuffer(gl.FRAMEBUFFER, framebuffer);
    gl.viewport(0, 0, width, height);
    gl.disable(gl.SCISSOR_TEST);
    gl.clear(gl.COLOR_BUFFER_BIT | gl.DEPTH_BUFFER_BIT);
  }

  #drawSlot(slot, mode, { worldToCamera, fx, fy, cx, cy }, { width, height } = this.#target, array = slot.gpu.array) {
    const gl = this.#gl, { clip, gpu } = slot, { header } = clip;
    if (clip.harmonics && !gpu.waves) this.#uploadHarmonics(slot);
    const { program, at } = (gpu.programs[mode] ??= this.#program(mode, clip));
    gl.useProgram(program);
    for (let unit = 0; unit < 4; unit++) {
      gl.activeTexture(gl.TEXTURE0 + unit);
      gl.bindTexture(unit < 3 ? gl.TEXTURE_2D_ARRAY : gl.TEXTURE_2D, gpu.textures[unit]);
    }
    if (gpu.waves) {
      gl.activeTexture(gl.TEXTURE4);
      gl.bindTexture(gl.TEXTURE_2D_ARRAY, gpu.waves);
      gl.uniform1f(at.reach, header.harmonics.reach);
    }
    const { rows, perLayer } = gpu, { first, next } = slot;
    const layer = Math.floor(first / perLayer), nextLayer = Math.floor(next / perLayer);
    gl.uniform4i(at.place, layer, (first % perLayer) * rows, nextLayer, (next % perLayer) * rows);
    gl.uniform1f(at.blend, slot.blend);
    gl.uniform3fv(at.low, clip.low);
    gl.uniform3fv(at.step_, clip.step);
    gl.uniform2f(at.scaling, header.scales.low, header.scales.step);
    gl.uniform2f(at.ranges, header.ranges.scale, header.ranges.opacity);
    gl.uniform3fv(at.tintLow, header.colors.low);
    gl.uniform3fv(at.tintStep, header.colors.step);
    gl.uniformMatrix4fv(at.worldToCamera, true, worldToCamera);
    gl.uniform4f(at.lens, fx, fy, cx, cy);
    gl.uniform2f(at.size, width, height);
    if (mode === "splats") {
      gl.uniform2fv(at.slab, this.#slab);
      gl.enable(gl.BLEND);
      gl.disable(gl.DEPTH_TEST);
    } else {
      gl.uniform1f(at.radius, Math.max(1.25, Math.min(width, height) / 250));
      gl.disable(gl.BLEND);
      gl.enable(gl.DEPTH_TEST);
    }
    gl.bindVertexArray(array);
    gl.drawArraysInstanced(gl.TRIANGLE_STRIP, 0, 4, clip.count);
  }

  /** Puts a picture over the background onto the canvas, or elsewhere, its lower left corner at (x, y). */
  #present(background, { picture, width, height } = this.#target, framebuffer = null, x = 0, y = 0) {
    const gl = this.#gl, { program, at } = this.#program("screen", null), colour = this.#background;
    const alpha = background?.[3] ?? (background ? 1 : 0);
    for (let k = 0; k < 3; k++) colour[k] = (background?.[k] ?? 0) * alpha;
    colour[3] = alpha;
    gl.bindFramebuffer(gl.FRAMEBUFFER, framebuffer);
    gl.viewport(x, y, width, height);
    gl.disable(gl.SCISSOR_TEST);
    gl.disable(gl.BLEND);
    gl.disable(gl.DEPTH_TEST);
    gl.useProgram(program);
    gl.activeTexture(gl.TEXTURE0);
    gl.bindTexture(gl.TEXTURE_2D, picture);
    gl.uniform4fv(at.background, colour);
    gl.uniform2f(at.origin, x, y);
    gl.bindVertexArray(null);
    gl.drawArrays(gl.TRIANGLES, 0, 3);
  }

  // The context and what lies in it

  /** Makes what is missing: the context, the picture drawn into, clips' textures. False where there is nothing to draw yet. */
  #begin() {
    if (!this.#gl) {
      if (!this.#slots.some((slot) => slot?.ready)) return false;
      const wanted = { alpha: true, premultipliedAlpha: true, antialias: false, depth: false };
      this.#gl = this.#canvas.getContext("webgl2", { ...wanted, powerPreference: "high-performance" });
      if (!this.#gl) throw new Error("This browser offers no WebGL 2: update it, or turn on hardware acceleration.");
    }
    const gl = this.#gl;
    if (gl.isContextLost()) return false;
    if (!this.#limits) {
      const half = gl.getExtension("EXT_color_buffer_float") ?? gl.getExtension("EXT_color_buffer_half_float");
      this.stats.halfFloat = Boolean(half);
      this.#limits = { size: gl.getParameter(gl.MAX_TEXTURE_SIZE), layers: gl.getParameter(gl.MAX_ARRAY_TEXTURE_LAYERS) };
      gl.pixelStorei(gl.UNPACK_ALIGNMENT, 1);
      gl.clearColor(0, 0, 0, 0);
      gl.blendFunc(gl.ONE, gl.ONE_MINUS_SRC_ALPHA);
      this.resize(this.#width, this.#height);
    }
    if (this.#target?.width !== this.#width || this.#target?.height !== this.#height) {
      this.#freeTarget(this.#target);
      this.#target = this.#makeTarget(this.#width, this.#height);
    }
    for (let k = 0; k < 2; k++) if (this.#slots[k]?.ready && !this.#slots[k].gpu) this.#upload(this.#slots[k]);
    return true;
  }

  #makeTarget(width, height) {
    const gl = this.#gl, depth = gl.createRenderbuffer();
    const [framebuffer, picture] = this.#makePicture(this.stats.halfFloat ? gl.RGBA16F : gl.RGBA8, width, height);
    const target = { framebuffer, picture, depth, width, height };
    gl.bindRenderbuffer(gl.RENDERBUFFER, depth);
    gl.renderbufferStorage(gl.RENDERBUFFER, gl.DEPTH_COMPONENT24, width, height);
    gl.framebufferRenderbuffer(gl.FRAMEBUFFER, gl.DEPTH_ATTACHMENT, gl.RENDERBUFFER, depth);
    if (!this.stats.halfFloat || gl.checkFramebufferStatus(gl.FRAMEBUFFER) !== gl.FRAMEBUFFER_UNSUPPORTED) return target;
    this.stats.halfFloat = false; // offered, and refused all the same
    this.#freeTarget(target);
    return this.#makeTarget(width, height);
  }

  /** A framebuffer, bound from now on, and its texture. */
  #makePicture(format, width, height) {
    const gl = this.#gl, framebuffer = gl.createFramebuffer(), picture = gl.createTexture();
    gl.activeTexture(gl.TEXTURE0);
    gl.bindTexture(gl.TEXTURE_2D, picture);
    gl.texStorage2D(gl.TEXTURE_2D, 1, format, width, height);
    gl.texParameteri(gl.TEXTURE_2D, gl.TEXTURE_MIN_FILTER, gl.NEAREST);
    gl.texParameteri(gl.TEXTURE_2D, gl.TEXTURE_MAG_FILTER, gl.NEAREST);
    gl.bindFramebuffer(gl.FRAMEBUFFER, framebuffer);
    gl.framebufferTexture2D(gl.FRAMEBUFFER, gl.COLOR_ATTACHMENT0, gl.TEXTURE_2D, picture, 0);
    return [framebuffer, picture];
  }

  #makeSmall(width, height) {
    this.#freeTarget(this.#small);
    this.#small = this.#makeTarget(width, height);
    [this.#small.framebuffer8, this.#small.picture8] = this.#makePicture(this.#gl.RGBA8, width, height);
  }

  /** Textures for all frames of a slot's clip, those that are there filled. */
  #upload(slot) {
    const gl = this.#gl, { clip } = slot, { count, frames } = clip, { size, layers } = this.#limits;
    const width = Math.min(ROW, count), rows = Math.ceil(count / ROW), perLayer = Math.ceil(frames / layers);
    if (rows * perLayer > size) {
      const textures = `${size} x ${size} x ${layers}`;
      throw this.#refuse(slot, `${count} Gaussians x ${frames} frames do not fit this browser's textures (${textures})`);
    }
    const kinds = [
      [gl.RGBA16UI, gl.RGBA_INTEGER, gl.UNSIGNED_SHORT, 4],
      clip.changesShape ? [gl.R32UI, gl.RED_INTEGER, gl.UNSIGNED_INT, 1] : [gl.R16UI, gl.RED_INTEGER, gl.UNSIGNED_SHORT, 1],
      clip.changesColor ? [gl.R32UI, gl.RED_INTEGER, gl.UNSIGNED_INT, 1] : null,
      [gl.RGBA32UI, gl.RGBA_INTEGER, gl.UNSIGNED_INT, 4],
    ];
    while (gl.getError()); // of before
    const textures = kinds.map((kind, unit) => {
      if (!kind) return null;
      const texture = gl.createTexture(), target = unit < 3 ? gl.TEXTURE_2D_ARRAY : gl.TEXTURE_2D;
      gl.activeTexture(gl.TEXTURE0 + unit);
      gl.bindTexture(target, texture);
      if (unit < 3) gl.texStorage3D(target, 1, kind[0], width, rows * perLayer, Math.ceil(frames / perLayer));
      else gl.texStorage2D(target, 1, kind[0], width, rows);
      for (const name of [gl.TEXTURE_MIN_FILTER, gl.TEXTURE_MAG_FILTER]) gl.texParameteri(target, name, gl.NEAREST);
      return texture;
    });
    slot.gpu = { textures, kinds, width, rows, perLayer, ...this.#makeOrder(count), aside: null, programs: {}, waves: null };
    if (!slot.fresh) slot.have.first = -1; // the order went with a lost context
    if (gl.getError() === gl.OUT_OF_MEMORY) {
      throw this.#refuse(slot, `the graphics memory does not hold ${count} Gaussians x ${frames} frames`);
    }
    gl.activeTexture(gl.TEXTURE3);
    gl.bindTexture(gl.TEXTURE_2D, textures[3]);
    for (const [y, length, height, from] of this.#strips(slot)) {
      gl.texSubImage2D(gl.TEXTURE_2D, 0, 0, y, length, height, gl.RGBA_INTEGER, gl.UNSIGNED_INT, clip.statics, from * 4);
    }
    for (let index = 0; index < slot.ready; index++) this.#uploadFrame(slot, index);
  }

  /** A buffer of an order and what draws in it. */
  #makeOrder(count) {
    const gl = this.#gl, order = gl.createBuffer(), array = gl.createVertexArray();
    gl.bindVertexArray(array);
    gl.bindBuffer(gl.ARRAY_BUFFER, order);
    gl.bufferData(gl.ARRAY_BUFFER, Uint32Array.from({ length: count }, (_, i) => i), gl.DYNAMIC_DRAW);
    gl.enableVertexAttribArray(0);
    gl.vertexAttribIPointer(0, 1, gl.UNSIGNED_INT, 0, 0);
    gl.vertexAttribDivisor(0, 1);
    gl.bindVertexArray(null);
    return { order, array };
  }

  #uploadFrame(slot, index) {
    const gl = this.#gl, { clip, gpu } = slot;
    const layer = Math.floor(index / gpu.perLayer), top = (index % gpu.perLayer) * gpu.rows;
    for (const [unit, data] of [clip.poses[index], clip.extras[index], clip.colors[index]].entries()) {
      if (!data) continue;
      const [, format, type, words] = gpu.kinds[unit];
      gl.activeTexture(gl.TEXTURE0 + unit);
      gl.bindTexture(gl.TEXTURE_2D_ARRAY, gpu.textures[unit]);
      for (const [y, length, height, from] of this.#strips(slot)) {
        gl.texSubImage3D(gl.TEXTURE_2D_ARRAY, 0, 0, top + y, layer, length, height, 1, format, type, data, from * words);
      }
    }
  }

  /** Colours that depend on the view: a layer for each four harmonics. */
  #uploadHarmonics(slot) {
    const gl = this.#gl, { clip, gpu } = slot, { count, waves, harmonics } = clip, layers = Math.ceil(waves / 4);
    gpu.waves = gl.createTexture();
    gpu.programs = {};
    gl.activeTexture(gl.TEXTURE4);
    gl.bindTexture(gl.TEXTURE_2D_ARRAY, gpu.waves);
    gl.texStorage3D(gl.TEXTURE_2D_ARRAY, 1, gl.RGBA32UI, gpu.width, gpu.rows, layers);
    for (const name of [gl.TEXTURE_MIN_FILTER, gl.TEXTURE_MAG_FILTER]) gl.texParameteri(gl.TEXTURE_2D_ARRAY, name, gl.NEAREST);
    const four = new Uint32Array(4 * count);
    for (let layer = 0; layer < layers; layer++) {
      for (let k = 0; k < 4; k++)
        for (let i = 0, at = 4 * layer + k; i < count; i++, at += waves) four[4 * i + k] = 4 * layer + k < waves ? harmonics[at] : 0;
      for (const [y, length, height, from] of this.#strips(slot)) {
        const box = [0, y, layer, length, height, 1];
        gl.texSubImage3D(gl.TEXTURE_2D_ARRAY, 0, ...box, gl.RGBA_INTEGER, gl.UNSIGNED_INT, four, from * 4);
      }
    }
  }

  /** Rectangles of a data texture that hold a frame: whole rows and the rest; each: top row, length, rows, first Gaussian. */
  #strips({ clip: { count }, gpu: { width } }) {
    const whole = Math.floor(count / width), rest = count - whole * width;
    return rest ? [[0, width, whole, 0], [whole, rest, 1, whole * width]].filter((strip) => strip[2]) : [[0, width, whole, 0]];
  }

  #refuse(slot, why) {
    this.setClip(slot === this.#slots[0] ? 0 : 1, null);
    return new Error(`The clip cannot be shown: ${why}. Export it with fewer Gaussians or frames.`);
  }

  #program(mode, clip) {
    const key = clip ? `${mode} ${clip.changesShape} ${clip.changesColor} ${clip.harmonics ? clip.waves : 0}` : mode;
    return this.#programs.get(key) ?? this.#compile(key, mode, clip);
  }

  #compile(key, mode, clip) {
    const gl = this.#gl, program = gl.createProgram();
    const [vertex, fragment] = shaders(mode, clip);
    for (const [type, text] of [[gl.VERTEX_SHADER, vertex], [gl.FRAGMENT_SHADER, fragment]]) {
      const shader = gl.createShader(type);
      gl.shaderSource(shader, text);
      gl.compileShader(shader);
      gl.attachShader(program, shader);
      gl.deleteShader(shader); // goes with the program
    }
    gl.linkProgram(program);
    if (!gl.getProgramParameter(program, gl.LINK_STATUS) && !gl.isContextLost()) {
      const logs = gl.getAttachedShaders(program).map((shader) => gl.getShaderInfoLog(shader));
      throw new Error(`The ${mode} shader was refused: ${[...logs, gl.getProgramInfoLog(program)].filter(Boolean).join(" ")}`);
    }
    const at = {};
    for (let i = 0; i < gl.getProgramParameter(program, gl.ACTIVE_UNIFORMS); i++) {
      const { name } = gl.getActiveUniform(program, i);
      at[name] = gl.getUniformLocation(program, name);
    }
    gl.useProgram(program);
    for (const [unit, name] of ["poses", "extras", "tints", "statics", "waves"].entries()) if (at[name]) gl.uniform1i(at[name], unit);
    const made = { program, at };
    this.#programs.set(key, made);
    return made;
  }

  #free(slot) {
    if (!slot?.gpu || this.#lost) return;
    const gl = this.#gl;
    for (const texture of [...slot.gpu.textures, slot.gpu.waves]) gl.deleteTexture(texture);
    for (const made of [slot.gpu, slot.gpu.aside]) {
      gl.deleteBuffer(made?.order ?? null);
      gl.deleteVertexArray(made?.array ?? null);
    }
    slot.gpu = null;
  }

  #freeTarget(target) {
    if (!target) return;
    const gl = this.#gl;
    for (const framebuffer of [target.framebuffer, target.framebuffer8]) gl.deleteFramebuffer(framebuffer ?? null);
    for (const texture of [target.picture, target.picture8]) gl.deleteTexture(texture ?? null);
    gl.deleteRenderbuffer(target.depth);
  }

  #contextLost = (event) => {
    event.preventDefault(); // else it never comes back
    this.#lost = true;
    this.#target = this.#small = this.#eye = this.#limits = null;
    this.#programs.clear();
    for (const slot of this.#slots) if (slot) slot.gpu = null;
    this.#settle();
    this.#on.onLost?.();
  };

  #contextRestored = () => {
    this.#lost = false;
    this.#on.onRestored?.();
  };
}

/** Whether an order is that of the moment a slot shows, seen along the forward axis of a world-to-camera matrix. */
function same(order, slot, m) {
  return order.first === slot.first && order.blend === slot.blend && order.next === slot.next
    && order.x === m[8] && order.y === m[9] && order.z === m[10];
}
