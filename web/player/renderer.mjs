// Draws moving Gaussians with WebGL2. All frames of a clip lie in textures, time is a uniform, neighbouring frames are mixed in
// the vertex shader; a frame drawn uploads nothing but an order, where a new one came.
//
// The picture follows core/render/rasterize.py: perspective cameras, near plane 0.01, 0.3 px^2 added to the projected
// covariance, alpha = min(0.999, opacity exp(-sigma)) dropped below 1/255, the direction of the Jacobian held within the picture
// plus 15 % a side. One thing differs: drawn from back to front, nothing stops at a transmittance of 1e-4, which no 8-bit
// picture shows.

import { makeView, view } from "./camera.mjs";
import { Sorter } from "./sort.mjs";

const ROW = 2048; // texels a row of the data textures: in reach of every WebGL2
const MAX_AGE = 2; // drawn frames
const FAINT = 0.05; // points and ellipsoids leave out what is fainter
const SHELL = 1.5; // standard deviations from the centre to an ellipsoid's surface

/**
 * @typedef {object} Shot what to draw
 * @property {import("./camera.mjs").OrbitCamera | import("./camera.mjs").View} camera
 * @property {number[]} time position in frames for each slot, between whole numbers mixed; a looping clip goes on to frame 0
 * @property {number[]} [background] r, g, b, a in [0, 1], straight; transparent where absent
 * @property {"splats" | "points" | "ellipsoids"} [mode]
 * @property {?number} [wiper] where slot 0, on its left, ends and slot 1 begins, in parts of the width; null: slot 0 alone
 */

const DECODE = `#version 300 es
precision highp float;
precision highp int;
precision highp usampler2D;
precision highp usampler2DArray;
layout(location = 0) in uint gaussian;
uniform usampler2DArray poses;   // position 3 x 16, low half of the rotation
uniform usampler2DArray extras;  // high half of the rotation; or its rest, log scales 3 x 5, opacity 7
uniform usampler2DArray tints;   // colours, where they change
uniform usampler2D statics;
uniform ivec4 place;             // layer and first row of the frame shown and of the next
uniform float blend;             // how much of the next
uniform vec3 low, step_;         // positions
uniform vec2 scaling;            // log scales: lowest, step
uniform vec2 ranges;             // step of the ranges of change: log scale, opacity
uniform vec3 tintLow, tintStep;

struct Gaussian { vec3 center; mat3 rotation; vec3 scales; float opacity; vec3 color; };

ivec3 texel(ivec2 at) { return ivec3(int(gaussian) % ${ROW}, at.y + int(gaussian) / ${ROW}, at.x); }

vec4 quaternion(uint bits, uint word) {  // smallest three, wxyz
  float middle = float((1u << (bits - 1u)) - 1u);
  uint mask = (1u << bits) - 1u;
  vec3 o = (vec3((uvec3(word) >> uvec3(2u * bits, bits, 0u)) & mask) / middle - 1.0) * 0.70710678;
  float w = sqrt(max(1.0 - dot(o, o), 0.0));
  uint largest = word >> (3u * bits);
  return largest == 0u ? vec4(w, o) : largest == 1u ? vec4(o.x, w, o.yz) : largest == 2u ? vec4(o.xy, w, o.z) : vec4(o, w);
}

vec3 tint(uint word) { return tintLow + vec3((uvec3(word) >> uvec3(21u, 10u, 0u)) & uvec3(2047u, 2047u, 1023u)) * tintStep; }

void pose(ivec2 at, out vec3 center, out vec4 q, out vec4 part) {
  uvec4 p = texelFetch(poses, texel(at), 0);
  uint e = texelFetch(extras, texel(at), 0).x;
  center = vec3(p.xyz);
#ifdef CHANGES_SHAPE
  q = quaternion(8u, p.w | ((e & 1023u) << 16));
  part = vec4((uvec4(e) >> uvec4(10u, 15u, 20u, 25u)) & uvec4(31u, 31u, 31u, 127u)) / vec4(31.0, 31.0, 31.0, 127.0);
#else
  q = quaternion(10u, p.w | (e << 16));
  part = vec4(0.0);
#endif
}

Gaussian decode() {
  uvec4 fixed_ = texelFetch(statics, texel(ivec2(0)).xy, 0);
  vec3 center; vec4 q, part;
  pose(place.xy, center, q, part);
#ifdef CHANGES_COLOR
  vec3 color = tint(texelFetch(tints, texel(place.xy), 0).x);
#else
  vec3 color = tint(fixed_.z);
#endif
  if (blend > 0.0) {
    vec3 center1; vec4 q1, part1;
    pose(place.zw, center1, q1, part1);
    center = mix(center, center1, blend);
    q = mix(q, dot(q, q1) < 0.0 ? -q1 : q1, blend);
    part = mix(part, part1, blend);
#ifdef CHANGES_COLOR
    color = mix(color, tint(texelFetch(tints, texel(place.zw), 0).x), blend);
#endif
  }
  vec4 range = vec4((uvec4(fixed_.w) >> uvec4(0u, 8u, 16u, 24u)) & 255u) * ranges.xxxy * part;
  vec3 scales = exp(scaling.x + scaling.y * vec3(fixed_.xxy >> uvec3(0u, 16u, 0u) & 65535u) + range.xyz);
  q = normalize(q);
  float w = q.x, x = q.y, y = q.z, z = q.w;
  mat3 rotation = mat3(
    1.0 - 2.0 * (y * y + z * z), 2.0 * (x * y + w * z), 2.0 * (x * z - w * y),
    2.0 * (x * y - w * z), 1.0 - 2.0 * (x * x + z * z), 2.0 * (y * z + w * x),
    2.0 * (x * z + w * y), 2.0 * (y * z - w * x), 1.0 - 2.0 * (x * x + y * y));
  return Gaussian(low + center * step_, rotation, scales, float(fixed_.y >> 16) / 65535.0 + range.w, color);
}

uniform mat4 worldToCamera;
uniform vec4 lens;  // fx, fy, cx, cy in pixels
uniform vec2 size;  // pixels

const vec4 NOWHERE = vec4(0.0, 0.0, 2.0, 1.0);

vec2 corner() { return vec2(gl_VertexID & 1, gl_VertexID >> 1) * 2.0 - 1.0; }

vec4 screen(vec2 pixel, float depth) { return vec4(pixel / size * vec2(2.0, -2.0) + vec2(-1.0, 1.0), depth, 1.0); }

// Half axes in pixels of the projected Gaussian at one standard deviation, 0.3 px^2 included; false where it is not drawn.
bool project(Gaussian g, vec3 c, out vec2 pixel, out vec2 major, out vec2 minor) {
  if (c.z < 0.01) return false;
  vec2 f = lens.xy, uv = c.xy / c.z;
  pixel = f * uv + lens.zw;
  vec2 margin = 0.15 * size / f;
  uv = clamp(uv, -lens.zw / f - margin, (size - lens.zw) / f + margin);
  mat3 axes = mat3(worldToCamera) * g.rotation;
  axes[0] *= g.scales.x; axes[1] *= g.scales.y; axes[2] *= g.scales.z;
  vec3 depths = vec3(axes[0].z, axes[1].z, axes[2].z);
  vec3 s = (vec3(axes[0].x, axes[1].x, axes[2].x) - uv.x * depths) * f.x / c.z;
  vec3 t = (vec3(axes[0].y, axes[1].y, axes[2].y) - uv.y * depths) * f.y / c.z;
  float a = dot(s, s), b = dot(s, t), d = dot(t, t);
  if (!(max(a, d) <= 1e15)) return false;
  vec3 n = cross(s, t);
  float determinant = dot(n, n) + 0.3 * (a + d + 0.3);  // not a d - b^2, which cancels
  float half_ = 0.5 * (a - d), radius = sqrt(half_ * half_ + b * b);
  float l1 = 0.5 * (a + d) + 0.3 + radius;
  // The longer one of two forms of the same eigenvector, for accuracy.
  vec2 along = half_ >= 0.0 ? vec2(half_ + radius, b) : vec2(b, radius - half_);
  along = radius > 1e-12 * l1 ? normalize(along) : vec2(1.0, 0.0);
  major = along * sqrt(l1);
  minor = vec2(-along.y, along.x) * sqrt(determinant / l1);
  return true;
}
`;

const SPLAT_VERTEX = `
uniform vec2 slab;  // nearest z-depth and reach of what a pick may find; reach 0 draws colours
out vec2 offset;    // standard deviations from the centre
flat out vec4 color;
void main() {
  Gaussian g = decode();
  vec3 c = (worldToCamera * vec4(g.center, 1.0)).xyz;
  vec2 pixel, major, minor;
  gl_Position = NOWHERE;
  if (g.opacity < 1.0 / 255.0 || !project(g, c, pixel, major, minor)) return;
  offset = corner() * sqrt(2.0 * log(g.opacity * 255.0));  // beyond, alpha is below 1/255
  color = vec4(slab.y > 0.0 ? vec3((c.z - slab.x) / slab.y) : g.color, g.opacity);
  gl_Position = screen(pixel + major * offset.x + minor * offset.y, 0.0);
}`;

const SPLAT_FRAGMENT = `#version 300 es
precision highp float;
in vec2 offset;
flat in vec4 color;
out vec4 result;
void main() {
  float alpha = min(0.999, color.a * exp(-0.5 * dot(offset, offset)));
  if (alpha < 1.0 / 255.0) discard;
  result = vec4(color.rgb * alpha, alpha);
}`;

// Depth buffer: 1 / z between the near plane and endlessness.
const POINT_VERTEX = `
uniform float radius;  // pixels
out vec2 offset;
flat out vec4 color;
void main() {
  Gaussian g = decode();
  vec3 c = (worldToCamera * vec4(g.center, 1.0)).xyz;
  gl_Position = NOWHERE;
  if (c.z < 0.01 || g.opacity < ${FAINT}) return;
  offset = corner() * (radius + 0.5);
  color = vec4(g.color, radius);
  gl_Position = screen(lens.xy * c.xy / c.z + lens.zw + offset, 1.0 - 0.02 / c.z);
}`;

const POINT_FRAGMENT = `#version 300 es
precision highp float;
in vec2 offset;
flat in vec4 color;
out vec4 result;
void main() {
  if (length(offset) > color.a) discard;
  result = vec4(color.rgb, 1.0);
}`;

const ELLIPSOID_VERTEX = `
flat out mat3 toUnit;  // camera directions to the frame where the ellipsoid is the unit sphere
flat out vec3 origin;  // the camera there
flat out vec3 color;
void main() {
  Gaussian g = decode();
  vec3 c = (worldToCamera * vec4(g.center, 1.0)).xyz;
  vec2 pixel, major, minor;
  gl_Position = NOWHERE;
  if (g.opacity < ${FAINT} || !project(g, c, pixel, major, minor)) return;
  // Not thinner than a pixel, nor than floats can intersect.
  vec3 scales = max(${SHELL} * g.scales, max(0.6 * c.z / lens.x, 0.02 * max(g.scales.x, max(g.scales.y, g.scales.z))));
  mat3 axes = mat3(worldToCamera) * g.rotation;
  toUnit = transpose(mat3(axes[0] / scales.x, axes[1] / scales.y, axes[2] / scales.z));
  origin = -(toUnit * c);
  color = g.color;
  vec2 q = corner() * ${1.25 * SHELL};  // the true outline reaches a little beyond the affine one
  gl_Position = screen(pixel + major * q.x + minor * q.y, 0.0);
}`;

const ELLIPSOID_FRAGMENT = `#version 300 es
precision highp float;
flat in mat3 toUnit;
flat in vec3 origin;
flat in vec3 color;
uniform vec4 lens;
uniform vec2 size;
out vec4 result;
void main() {
  vec2 pixel = vec2(gl_FragCoord.x, size.y - gl_FragCoord.y);
  vec3 ray = vec3((pixel - lens.zw) / lens.xy, 1.0), d = toUnit * ray;
  // The point of the ray nearest to the centre first: the discriminant would cancel for small ellipsoids far away.
  float dd = dot(d, d), middle = -dot(origin, d) / dd;
  vec3 nearest = origin + middle * d;
  float left = 1.0 - dot(nearest, nearest);
  if (left < 0.0) discard;
  float z = middle - sqrt(left / dd);
  if (z < 0.01) discard;
  vec3 normal = normalize((origin + z * d) * toUnit);
  float facing = max(-dot(normal, normalize(ray)), 0.0);
  result = vec4(color * (0.35 + 0.65 * facing), 1.0);
  gl_FragDepth = 1.0 - 0.01 / z;
}`;

const SCREEN_VERTEX = `#version 300 es
void main() { gl_Position = vec4(vec2(gl_VertexID & 1, gl_VertexID >> 1) * 4.0 - 1.0, 0.0, 1.0); }`;

const SCREEN_FRAGMENT = `#version 300 es
precision highp float;
uniform sampler2D picture;
uniform vec4 background;  // premultiplied
out vec4 result;
void main() {
  vec4 c = texelFetch(picture, ivec2(gl_FragCoord.xy), 0);
  result = c + (1.0 - c.a) * background;
}`;

const SHADERS = {
  splats: [SPLAT_VERTEX, SPLAT_FRAGMENT],
  points: [POINT_VERTEX, POINT_FRAGMENT],
  ellipsoids: [ELLIPSOID_VERTEX, ELLIPSOID_FRAGMENT],
  screen: [SCREEN_VERTEX, SCREEN_FRAGMENT],
};

/** Draws one clip, or two with a wiper, on a canvas. Its context is made when there is first something to draw. */
export class Renderer {
  /** Figures for tests and the curious; times in milliseconds. */
  stats = {
    drawn: 0, held: 0, scriptMs: 0, orders: 0, sortMs: 0, maxSortMs: 0, orderAge: 0, maxOrderAge: 0, uploads: 0, halfFloat: false, localSort: false,
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
   * @param {{onLost?: () => void, onRestored?: () => void, onOrder?: () => void}} [on] the context is lost; it is back and all is
   *   uploaded again; a newer order is there, so that a picture standing still gets better when drawn again
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
    const divided = shot.wiper !== null && shot.wiper !== undefined;
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
    const gl = this.#gl, edge = divided ? Math.round(Math.min(Math.max(shot.wiper, 0), 1) * this.#width) : this.#width;
    gl.bindFramebuffer(gl.FRAMEBUFFER, this.#target.framebuffer);
    gl.viewport(0, 0, this.#width, this.#height);
    gl.disable(gl.SCISSOR_TEST);
    gl.clear(gl.COLOR_BUFFER_BIT | gl.DEPTH_BUFFER_BIT);
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
      if (this.draw(shot) && (this.settled || (shot.mode ?? "splats") !== "splats")) return true;
      await new Promise((resolve) => this.#waiting.push(resolve));
    }
    return false;
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
   * The point of the object seen at a pixel of the picture last drawn; null where there is nothing.
   * @param {number} x pixels from the left
   * @param {number} y pixels from the top
   * @returns {?number[]}
   */
  pick(x, y) {
    const shot = this.#shot;
    if (!shot || this.#lost || !this.#target || x < 0 || y < 0 || x >= this.#width || y >= this.#height) return null;
    const divided = shot.wiper !== null && shot.wiper !== undefined;
    const slot = this.#slots[divided && x >= shot.wiper * this.#width ? 1 : 0];
    if (!slot?.drawn) return null;
    const gl = this.#gl, camera = this.#look(shot.camera), { worldToCamera: m, fx, fy, cx, cy } = camera, { low, header } = slot.clip;
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
    this.#gl = this.#target = this.#shot = null;
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

  #drawSlot(slot, mode, { worldToCamera, fx, fy, cx, cy }) {
    const gl = this.#gl, { clip, gpu } = slot, { header } = clip;
    const { program, at } = this.#program(mode, clip);
    gl.useProgram(program);
    for (let unit = 0; unit < 4; unit++) {
      gl.activeTexture(gl.TEXTURE0 + unit);
      gl.bindTexture(unit < 3 ? gl.TEXTURE_2D_ARRAY : gl.TEXTURE_2D, gpu.textures[unit]);
    }
    const { rows, perLayer } = gpu, { first, next } = slot;
    gl.uniform4i(at.place, Math.floor(first / perLayer), (first % perLayer) * rows, Math.floor(next / perLayer), (next % perLayer) * rows);
    gl.uniform1f(at.blend, slot.blend);
    gl.uniform3fv(at.low, clip.low);
    gl.uniform3fv(at.step_, clip.step);
    gl.uniform2f(at.scaling, header.scales.low, header.scales.step);
    gl.uniform2f(at.ranges, header.ranges.scale, header.ranges.opacity);
    gl.uniform3fv(at.tintLow, header.colors.low);
    gl.uniform3fv(at.tintStep, header.colors.step);
    gl.uniformMatrix4fv(at.worldToCamera, true, worldToCamera);
    gl.uniform4f(at.lens, fx, fy, cx, cy);
    gl.uniform2f(at.size, this.#width, this.#height);
    if (mode === "splats") {
      gl.uniform2fv(at.slab, this.#slab);
      gl.enable(gl.BLEND);
      gl.disable(gl.DEPTH_TEST);
    } else {
      gl.uniform1f(at.radius, Math.max(1.25, Math.min(this.#width, this.#height) / 250));
      gl.disable(gl.BLEND);
      gl.enable(gl.DEPTH_TEST);
    }
    gl.bindVertexArray(gpu.array);
    gl.drawArraysInstanced(gl.TRIANGLE_STRIP, 0, 4, clip.count);
  }

  /** Puts the picture on the canvas, over the background. */
  #present(background) {
    const gl = this.#gl, { program, at } = this.#program("screen", null), colour = this.#background;
    const alpha = background?.[3] ?? (background ? 1 : 0);
    for (let k = 0; k < 3; k++) colour[k] = (background?.[k] ?? 0) * alpha;
    colour[3] = alpha;
    gl.bindFramebuffer(gl.FRAMEBUFFER, null);
    gl.viewport(0, 0, this.#target.width, this.#target.height);
    gl.disable(gl.SCISSOR_TEST);
    gl.disable(gl.BLEND);
    gl.disable(gl.DEPTH_TEST);
    gl.useProgram(program);
    gl.activeTexture(gl.TEXTURE0);
    gl.bindTexture(gl.TEXTURE_2D, this.#target.picture);
    gl.uniform4fv(at.background, colour);
    gl.bindVertexArray(null);
    gl.drawArrays(gl.TRIANGLES, 0, 3);
  }

  // The context and what lies in it

  /** Makes what is missing: the context, the picture drawn into, clips' textures. False where there is nothing to draw yet. */
  #begin() {
    if (!this.#gl) {
      if (!this.#slots.some((slot) => slot?.ready)) return false;
      const wanted = { alpha: true, premultipliedAlpha: true, antialias: false, depth: false, powerPreference: "high-performance" };
      this.#gl = this.#canvas.getContext("webgl2", wanted);
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
    if (this.#target?.width !== this.#width || this.#target?.height !== this.#height) this.#makeTarget();
    for (let k = 0; k < 2; k++) if (this.#slots[k]?.ready && !this.#slots[k].gpu) this.#upload(this.#slots[k]);
    return true;
  }

  #makeTarget() {
    const gl = this.#gl, width = this.#width, height = this.#height;
    this.#freeTarget();
    const framebuffer = gl.createFramebuffer(), picture = gl.createTexture(), depth = gl.createRenderbuffer();
    this.#target = { framebuffer, picture, depth, width, height };
    gl.activeTexture(gl.TEXTURE0);
    gl.bindTexture(gl.TEXTURE_2D, picture);
    gl.texStorage2D(gl.TEXTURE_2D, 1, this.stats.halfFloat ? gl.RGBA16F : gl.RGBA8, width, height);
    gl.texParameteri(gl.TEXTURE_2D, gl.TEXTURE_MIN_FILTER, gl.NEAREST);
    gl.texParameteri(gl.TEXTURE_2D, gl.TEXTURE_MAG_FILTER, gl.NEAREST);
    gl.bindRenderbuffer(gl.RENDERBUFFER, depth);
    gl.renderbufferStorage(gl.RENDERBUFFER, gl.DEPTH_COMPONENT24, width, height);
    gl.bindFramebuffer(gl.FRAMEBUFFER, framebuffer);
    gl.framebufferTexture2D(gl.FRAMEBUFFER, gl.COLOR_ATTACHMENT0, gl.TEXTURE_2D, picture, 0);
    gl.framebufferRenderbuffer(gl.FRAMEBUFFER, gl.DEPTH_ATTACHMENT, gl.RENDERBUFFER, depth);
  }

  /** Textures for all frames of a slot's clip, those that are there filled. */
  #upload(slot) {
    const gl = this.#gl, { clip } = slot, { count, frames } = clip, { size, layers } = this.#limits;
    const width = Math.min(ROW, count), rows = Math.ceil(count / ROW), perLayer = Math.ceil(frames / layers);
    if (rows * perLayer > size) {
      throw this.#refuse(slot, `${count} Gaussians x ${frames} frames do not fit this browser's textures (${size} x ${size} x ${layers})`);
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
    const order = gl.createBuffer(), array = gl.createVertexArray();
    gl.bindVertexArray(array);
    gl.bindBuffer(gl.ARRAY_BUFFER, order);
    gl.bufferData(gl.ARRAY_BUFFER, Uint32Array.from({ length: count }, (_, i) => i), gl.DYNAMIC_DRAW);
    gl.enableVertexAttribArray(0);
    gl.vertexAttribIPointer(0, 1, gl.UNSIGNED_INT, 0, 0);
    gl.vertexAttribDivisor(0, 1);
    gl.bindVertexArray(null);
    slot.gpu = { textures, kinds, width, rows, perLayer, order, array };
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

  /** Rectangles of a data texture that hold a frame: whole rows and what is left; each top row, length, rows, first Gaussian. */
  #strips({ clip: { count }, gpu: { width } }) {
    const whole = Math.floor(count / width), rest = count - whole * width;
    return rest ? [[0, width, whole, 0], [whole, rest, 1, whole * width]].filter((strip) => strip[2]) : [[0, width, whole, 0]];
  }

  #refuse(slot, why) {
    this.setClip(this.#slots.indexOf(slot), null);
    return new Error(`The clip cannot be shown: ${why}. Export it with fewer Gaussians or frames.`);
  }

  #program(mode, clip) {
    const key = clip ? `${mode} ${clip.changesShape} ${clip.changesColor}` : mode;
    return this.#programs.get(key) ?? this.#compile(key, mode, clip);
  }

  #compile(key, mode, clip) {
    const gl = this.#gl, program = gl.createProgram();
    let [vertex, fragment] = SHADERS[mode];
    if (clip) {
      const defines = (clip.changesShape ? "#define CHANGES_SHAPE\n" : "") + (clip.changesColor ? "#define CHANGES_COLOR\n" : "");
      vertex = DECODE.replace("\n", `\n${defines}`) + vertex;
    }
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
    for (const [unit, name] of ["poses", "extras", "tints", "statics"].entries()) if (at[name]) gl.uniform1i(at[name], unit);
    const made = { program, at };
    this.#programs.set(key, made);
    return made;
  }

  #free(slot) {
    if (!slot?.gpu || this.#lost) return;
    const gl = this.#gl;
    for (const texture of slot.gpu.textures) gl.deleteTexture(texture);
    gl.deleteBuffer(slot.gpu.order);
    gl.deleteVertexArray(slot.gpu.array);
    slot.gpu = null;
  }

  #freeTarget() {
    if (!this.#target) return;
    this.#gl.deleteFramebuffer(this.#target.framebuffer);
    this.#gl.deleteTexture(this.#target.picture);
    this.#gl.deleteRenderbuffer(this.#target.depth);
    this.#target = null;
  }

  #contextLost = (event) => {
    event.preventDefault(); // else it never comes back
    this.#lost = true;
    this.#target = this.#limits = null;
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
