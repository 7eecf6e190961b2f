// Orbit camera of the player, in the conventions of core/cameras.py: world right-handed, +Y up, front +Z; degrees; azimuth 0 is
// the driving video's view, +90 is +X; positive elevation is above. Views are OpenCV (x right, y down, z forward).

/**
 * @typedef {object} OrbitCamera
 * @property {number[]} target what it looks at, world units
 * @property {number} distance from the target, world units
 * @property {number} azimuth degrees
 * @property {number} elevation degrees
 * @property {number} [roll] degrees, positive turns the camera clockwise as seen from behind it, so the picture the other way
 * @property {number} fovy vertical field of view, degrees
 * @property {number[]} [principal] principal point as fractions of the picture's width and height, its centre where absent
 */

/**
 * @typedef {object} View what the renderer draws with
 * @property {Float32Array} worldToCamera OpenCV, row-major 4 x 4
 * @property {number} fx focal length, pixels
 * @property {number} fy
 * @property {number} cx principal point, pixels
 * @property {number} cy
 */

const RADIANS = Math.PI / 180;

/** An empty view, to be filled by {@link view} again and again. @returns {View} */
export function makeView() {
  return { worldToCamera: new Float32Array(16), fx: 1, fy: 1, cx: 0, cy: 0 };
}

/**
 * What an orbit camera sees in a picture of this size, in pixels.
 * @param {OrbitCamera} camera
 * @param {number} width
 * @param {number} height
 * @param {View} [out] filled and returned
 * @returns {View}
 */
export function view(camera, width, height, out = makeView()) {
  const a = camera.azimuth * RADIANS, e = camera.elevation * RADIANS, r = (camera.roll ?? 0) * RADIANS;
  const sa = Math.sin(a), ca = Math.cos(a), se = Math.sin(e), ce = Math.cos(e), sr = Math.sin(r), cr = Math.cos(r);
  const [tx, ty, tz] = camera.target, d = camera.distance, m = out.worldToCamera;
  // Rows right (ca, 0, -sa), down (se sa, -ce, se ca), forward (-ce sa, -se, -ce ca), the first two turned by the roll.
  m[0] = cr * ca + sr * se * sa;
  m[1] = -sr * ce;
  m[2] = -cr * sa + sr * se * ca;
  m[4] = -sr * ca + cr * se * sa;
  m[5] = -cr * ce;
  m[6] = sr * sa + cr * se * ca;
  m[8] = -ce * sa;
  m[9] = -se;
  m[10] = -ce * ca;
  m[12] = m[13] = m[14] = 0;
  m[15] = 1;
  m[3] = -(m[0] * tx + m[1] * ty + m[2] * tz);
  m[7] = -(m[4] * tx + m[5] * ty + m[6] * tz);
  m[11] = d - (m[8] * tx + m[9] * ty + m[10] * tz);
  out.fx = out.fy = height / 2 / Math.tan((camera.fovy * RADIANS) / 2);
  out.cx = width * (camera.principal?.[0] ?? 0.5);
  out.cy = height * (camera.principal?.[1] ?? 0.5);
  return out;
}

/**
 * The host's LOAD3D_CAMERA value (three.js: looks along its own -Z, fov vertical in degrees) of an orbit camera.
 * @param {OrbitCamera} camera
 * @param {number} [aspect] width / height
 */
export function toCameraInfo(camera, aspect = 1) {
  const m = view(camera, 1, 1).worldToCamera, d = camera.distance;
  const [x, y, z] = [0, 1, 2].map((k) => camera.target[k] - m[8 + k] * d);
  const [qx, qy, qz, qw] = quaternion([m[0], m[1], m[2]], [-m[4], -m[5], -m[6]], [-m[8], -m[9], -m[10]]);
  return {
    position: { x, y, z },
    target: { x: camera.target[0], y: camera.target[1], z: camera.target[2] },
    quaternion: { x: qx, y: qy, z: qz, w: qw },
    zoom: 1,
    cameraType: "perspective",
    fov: camera.fovy,
    aspect,
    near: 0.01,
    far: 100,
  };
}

/**
 * The orbit camera of a LOAD3D_CAMERA value. A quaternion, where given, wins over the target, which then only tells the
 * distance; a zoom is taken into the field of view.
 * @returns {OrbitCamera}
 */
export function fromCameraInfo(info) {
  if ((info.cameraType ?? "perspective") !== "perspective") throw new Error("Orthographic cameras cannot be shown.");
  const position = [info.position.x, info.position.y, info.position.z];
  const t = info.target ?? { x: 0, y: 0, z: 0 };
  let back = [position[0] - t.x, position[1] - t.y, position[2] - t.z];
  let right = null, distance = Math.hypot(...back);
  if (info.quaternion) {
    const { x, y, z, w } = info.quaternion, n = 1 / Math.hypot(x, y, z, w) ** 2;
    const aim = [2 * n * (x * z + w * y), 2 * n * (y * z - w * x), 1 - 2 * n * (x * x + y * y)];
    right = [1 - 2 * n * (y * y + z * z), 2 * n * (x * y + w * z), 2 * n * (x * z - w * y)];
    const along = dot(back, aim);
    distance = along > 1e-3 ? along : Math.max(dot(position, aim), 1e-3); // else: to where it passes the origin
    back = aim;
  } else {
    if (distance < 1e-9) throw new Error("The camera stands on its target.");
    back = back.map((v) => v / distance);
  }
  const level = Math.hypot(back[0], back[2]);
  const azimuth = level > 1e-9 ? Math.atan2(back[0], back[2]) : 0, elevation = Math.atan2(back[1], level);
  const sa = Math.sin(azimuth), ca = Math.cos(azimuth), se = Math.sin(elevation), ce = Math.cos(elevation);
  const roll = right ? Math.atan2(dot(right, [se * sa, -ce, se * ca]), dot(right, [ca, 0, -sa])) : 0;
  const fov = (info.fov || 35) * RADIANS;
  return {
    target: position.map((v, k) => v - back[k] * distance),
    distance,
    azimuth: azimuth / RADIANS,
    elevation: elevation / RADIANS,
    roll: roll / RADIANS,
    fovy: (2 * Math.atan(Math.tan(fov / 2) / (info.zoom || 1))) / RADIANS,
  };
}

/**
 * The camera of the driving video, with its framing, from the header of a play stream.
 * @returns {OrbitCamera}
 */
export function frontCamera(header) {
  const camera = fromCameraInfo(header.camera), front = header.front;
  if (front?.cx != null) camera.principal = [front.cx / front.width, (front.cy ?? front.height / 2) / front.height];
  return camera;
}

function dot(a, b) {
  return a[0] * b[0] + a[1] * b[1] + a[2] * b[2];
}

/** Quaternion xyzw of the rotation with these columns, through its largest component. */
function quaternion([a, b, c], [d, e, f], [g, h, i]) {
  const s = [1 + a - e - i, 1 - a + e - i, 1 - a - e + i, 1 + a + e + i];
  const k = s.indexOf(Math.max(...s));
  const p = [d + b, g + c, h + f], m = [f - h, g - c, b - d];
  const q = [[s[0], p[0], p[1], m[0]], [p[0], s[1], p[2], m[1]], [p[1], p[2], s[2], m[2]], [...m, s[3]]][k];
  const n = (q[3] < 0 ? -1 : 1) / Math.hypot(...q);
  return q.map((v) => v * n);
}
