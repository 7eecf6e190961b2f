// Browsers keep about 16 WebGL contexts a page and drop the oldest without a word. The players of a page share fewer.

/** Contexts that the players of one page hold at most. */
export const LIMIT = 8;

/**
 * @typedef {object} Holder
 * @property {() => boolean} shown whether it is on screen now
 * @property {() => void} release gives its context up; called by others
 */

/** Holders of a context, the least recently used first. @type {Set<Holder>} */
const holders = new Set();

/**
 * Asks for a context. One that is off screen loses its own first; one on screen only to somebody who insists.
 * @param {Holder} holder
 * @param {boolean} insist the user has just turned to this one
 * @returns {boolean} whether it may make one
 */
export function acquire(holder, insist) {
  if (!holders.has(holder) && holders.size >= LIMIT) {
    const others = [...holders];
    const victim = others.find((other) => !other.shown()) ?? (insist ? others[0] : null);
    if (!victim) return false;
    holders.delete(victim);
    victim.release();
  }
  holders.delete(holder);
  holders.add(holder);
  return true;
}

/** Says that a holder has no context any more. @param {Holder} holder */
export function giveUp(holder) {
  holders.delete(holder);
}
