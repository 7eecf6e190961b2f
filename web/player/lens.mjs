// The player's camera. Its field of view spans the picture's shorter side: a picture of any shape shows the whole object.

import { frontCamera, fromCameraInfo, toCameraInfo } from "./camera.mjs";

/**
 * @typedef {object} Camera
 * @property {number[]} target
 * @property {number} distance from the target, world units
 * @property {number} azimuth degrees
 * @property {number} elevation degrees
 * @property {number} roll degrees
 * @property {number} fov of the picture's shorter side, degrees
 * @property {number[]} shift of the principal point from the picture's centre, in shorter sides
 */

const RADIANS = Math.PI / 180;
/** Room around the object, in sizes of it, and the distance in sizes of a camera that nobody has given. */
const MARGIN = 1.25;
const DISTANCE = 2;

/** The renderer's camera for a picture of this shape. @param {Camera} camera @param {number} aspect width / height */
export function lens({ fov, shift, ...rest }, aspect) {
  const half = Math.tan((fov / 2) * RADIANS) / Math.min(1, aspect);
  const principal = [0.5 + shift[0] / Math.max(1, aspect), 0.5 + shift[1] * Math.min(1, aspect)];
  return { ...rest, fovy: (2 * Math.atan(half)) / RADIANS, principal };
}

/** @param {import("./camera.mjs").OrbitCamera} camera @param {number} aspect @returns {Camera} */
function unlensed({ fovy, principal = [0.5, 0.5], roll = 0, ...rest }, aspect) {
  const half = Math.tan((fovy / 2) * RADIANS) * Math.min(1, aspect);
  const shift = [(principal[0] - 0.5) * Math.max(1, aspect), (principal[1] - 0.5) / Math.min(1, aspect)];
  return { ...rest, roll, fov: (2 * Math.atan(half)) / RADIANS, shift };
}

/** @param {any} info LOAD3D_CAMERA; `principal` in it: the principal point in shares of the picture @returns {Camera} */
export function fromInfo(info) {
  return unlensed({ ...fromCameraInfo(info), principal: info.principal }, info.aspect || 1);
}

/** @param {Camera} camera @param {number} aspect of the picture */
export function toInfo(camera, aspect) {
  const seen = lens(camera, aspect);
  const info = toCameraInfo(seen, aspect);
  return camera.shift.some((value) => Math.abs(value) > 1e-6) ? { ...info, principal: seen.principal } : info;
}

/** The driving video's view. @param {any} header of a play stream @returns {Camera} */
export function filmedCamera(header) {
  return unlensed(frontCamera(header), header.camera.aspect || 1);
}

/** The whole object from the front, as core/views.py's object_cameras. @param {any} header of a play stream @returns {Camera} */
export function homeCamera({ placement, front }) {
  const { scale, center } = placement;
  const distance = front?.distance ?? DISTANCE;
  const fov = (2 * Math.atan((0.5 * MARGIN) / distance)) / RADIANS;
  return {
    target: center,
    distance: distance * scale,
    azimuth: 0,
    elevation: front?.elevation ?? 0,
    roll: 0,
    fov,
    shift: [0, 0],
  };
}
