// The renderer's shaders: frames are decoded and mixed in the vertex shader.
//
// The picture follows core/render/rasterize.py: perspective cameras, near plane 0.01, 0.3 px^2 added to the projected
// covariance, alpha = min(0.999, opacity exp(-sigma)) dropped below 1/255, the direction of the Jacobian held within the
// picture plus 15 % a side. One thing differs: drawn from back to front, nothing stops at a transmittance of 1e-4, which no
// 8-bit picture shows.

/** Texels a row of the data textures: in reach of every WebGL2. */
export const ROW = 2048;
const FAINT = 0.05; // points and ellipsoids leave out what is fainter
const SHELL = 1.5; // standard deviations from the centre to an ellipsoid's surface

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

#ifdef HARMONICS
uniform usampler2DArray waves;  // a word a harmonic above degree 0, four a texel
uniform float reach;            // the value of their greatest word

vec3 wave(int k) {
  uint word = texelFetch(waves, ivec3(int(gaussian) % ${ROW}, int(gaussian) / ${ROW}, k >> 2), 0)[k & 3];
  return (vec3((uvec3(word) >> uvec3(20u, 10u, 0u)) & 1023u) - 511.0) * (reach / 511.0);
}

vec3 seen(Gaussian g) {  // the harmonics of core/harmonics.py, in the direction from the camera
  vec3 d = normalize(g.center + transpose(mat3(worldToCamera)) * worldToCamera[3].xyz);
  float x = d.x, y = d.y, z = d.z, xx = x * x, yy = y * y, zz = z * z;
  vec3 c = g.color + 0.4886025119029199 * (-y * wave(0) + z * wave(1) - x * wave(2));
#if HARMONICS > 3
  c += 1.0925484305920792 * (x * y * wave(3) - y * z * wave(4) - x * z * wave(6))
    + 0.31539156525252005 * (2.0 * zz - xx - yy) * wave(5) + 0.5462742152960396 * (xx - yy) * wave(7);
#endif
#if HARMONICS > 8
  c += -0.5900435899266435 * (y * (3.0 * xx - yy) * wave(8) + x * (xx - 3.0 * yy) * wave(14))
    + 2.890611442640554 * x * y * z * wave(9) + 1.445305721320277 * z * (xx - yy) * wave(13)
    - 0.4570457994644658 * (4.0 * zz - xx - yy) * (y * wave(10) + x * wave(12))
    + 0.3731763325901154 * z * (2.0 * zz - 3.0 * xx - 3.0 * yy) * wave(11);
#endif
  return max(c, 0.0);
}
#else
vec3 seen(Gaussian g) { return max(g.color, 0.0); }
#endif

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
  color = vec4(slab.y > 0.0 ? vec3((c.z - slab.x) / slab.y) : seen(g), g.opacity);
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
  color = vec4(seen(g), radius);
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
  color = seen(g);
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
uniform vec2 origin;      // of the picture in what is drawn into, pixels
out vec4 result;
void main() {
  vec4 c = texelFetch(picture, ivec2(gl_FragCoord.xy - origin), 0);
  result = c + (1.0 - c.a) * background;
}`;

const SHADERS = {
  splats: [SPLAT_VERTEX, SPLAT_FRAGMENT],
  points: [POINT_VERTEX, POINT_FRAGMENT],
  ellipsoids: [ELLIPSOID_VERTEX, ELLIPSOID_FRAGMENT],
  screen: [SCREEN_VERTEX, SCREEN_FRAGMENT],
};

/**
 * Vertex and fragment shader: of a way to draw a clip, or of the "screen", which puts the picture over the background.
 * @param {string} mode
 * @param {?import("./stream.mjs").Clip} clip
 * @returns {[string, string]}
 */
export function shaders(mode, clip) {
  const [vertex, fragment] = SHADERS[mode];
  if (!clip) return [vertex, fragment];
  const defines = (clip.changesShape ? "#define CHANGES_SHAPE\n" : "") + (clip.changesColor ? "#define CHANGES_COLOR\n" : "")
    + (clip.harmonics ? `#define HARMONICS ${clip.waves}\n` : "");
  return [DECODE.replace("\n", `\n${defines}`) + vertex, fragment];
}
