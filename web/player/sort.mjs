// Depth orders of Gaussians, farthest first, from a worker; on the page's own thread where no worker can start.

/**
 * The sort itself. Self-contained: its text is also the worker's program.
 *
 * A counting sort on 16-bit depths within the clip's box. Equal depths keep the rasteriser's rule: the lower index is in front.
 */
function makeSorter() {
  const clips = [null, null];
  const starts = new Uint32Array(65536);
  return {
    /** @param {?{count: number, step: number[]}} clip positions are 16-bit numbers times `step` per axis */
    setClip(slot, clip) {
      clips[slot] = clip && { ...clip, frames: [], keys: new Uint16Array(clip.count) };
    },
    /** @param {Uint16Array} pose 4 words a Gaussian, the first three its position */
    addFrame(slot, index, pose) {
      if (clips[slot]) clips[slot].frames[index] = pose;
    },
    /**
     * Fills `order` with indices from the farthest along (x, y, z), the camera's forward axis, to the nearest, between two
     * frames by the share of the second.
     */
    sort(slot, { first, next, blend, x, y, z }, order) {
      const clip = clips[slot], pose = clip?.frames[first], other = clip?.frames[next];
      if (!pose || !other) return false;
      const { count, step, keys } = clip;
      const a = x * step[0], b = y * step[1], c = z * step[2];
      const farthest = 65535 * (Math.max(a, 0) + Math.max(b, 0) + Math.max(c, 0));
      const nearest = 65535 * (Math.min(a, 0) + Math.min(b, 0) + Math.min(c, 0));
      const scale = 65535 / (farthest - nearest || 1);
      const ka = a * scale, kb = b * scale, kc = c * scale, k0 = farthest * scale;
      starts.fill(0);
      const la = ka * blend, lb = kb * blend, lc = kc * blend, ma = ka - la, mb = kb - lb, mc = kc - lc;
      for (let i = 0, p = 0; i < count; i++, p += 4) {
        let key = k0 - ma * pose[p] - mb * pose[p + 1] - mc * pose[p + 2];
        if (blend) key -= la * other[p] + lb * other[p + 1] + lc * other[p + 2];
        keys[i] = key;
        starts[keys[i]]++;
      }
      for (let key = 0, sum = 0; key < 65536; key++) {
        const number = starts[key];
        starts[key] = sum;
        sum += number;
      }
      for (let i = count - 1; i >= 0; i--) order[starts[keys[i]]++] = i;
      return true;
    },
  };
}

/** The worker's side of the messages. Self-contained, as above. */
function serve(scope, sorter) {
  scope.onmessage = ({ data }) => {
    if (data.clip !== undefined) return sorter.setClip(data.slot, data.clip);
    if (data.pose) return sorter.addFrame(data.slot, data.index, data.pose);
    const begin = performance.now();
    const { slot, wanted, order, version, aside } = data;
    const sorted = sorter.sort(slot, wanted, order);
    scope.postMessage({ slot, order, sorted, version, aside, ms: performance.now() - begin }, [order.buffer]);
  };
}

/** Orders for the two clips of a renderer: one request under way per slot, its buffer travels to the worker and back. */
export class Sorter {
  #worker = null;
  #local = null;
  #url = "";
  #versions = [0, 0];
  #clips = [null, null];
  #asides = new Map(); // orders under way that are for others than the picture, by number
  #last = 0; // of their numbers
  #onOrder;

  /** @param {(slot: number, order: Uint32Array, ms: number) => void} onOrder the order is the caller's until it asks again */
  constructor(onOrder) {
    this.#onOrder = onOrder;
    try {
      this.#url = URL.createObjectURL(new Blob([`(${serve})(self, (${makeSorter})())`], { type: "text/javascript" }));
      this.#worker = new Worker(this.#url);
      this.#worker.onmessage = ({ data }) => this.#arrived(data);
      this.#worker.onerror = () => this.#fallBack();
    } catch {
      this.#fallBack();
    }
  }

  /** Whether the page's own thread sorts. */
  get local() {
    return this.#local !== null;
  }

  /** @param {?import("./stream.mjs").Clip} clip frames that are there are taken along */
  setClip(slot, clip) {
    this.#versions[slot]++;
    this.#clips[slot] = clip && { clip, order: new Uint32Array(clip.count), waiting: null };
    this.#introduce(slot);
  }

  addFrame(slot, index) {
    const pose = this.#clips[slot].clip.poses[index];
    if (this.#local) this.#local.addFrame(slot, index, pose);
    else this.#worker.postMessage({ slot, index, pose });
  }

  /** Whether a slot's last request is answered. */
  idle(slot) {
    return this.#clips[slot].order !== null;
  }

  /**
   * Asks for an order; only when idle.
   * @param {{first: number, next: number, blend: number, x: number, y: number, z: number}} wanted two frames, the share of the
   *   second, and the camera's forward axis
   */
  request(slot, wanted) {
    const held = this.#clips[slot], order = held.order;
    if (this.#local) {
      const begin = performance.now();
      if (this.#local.sort(slot, wanted, order)) this.#onOrder(slot, order, performance.now() - begin);
      return;
    }
    held.order = null;
    held.waiting = wanted;
    this.#worker.postMessage({ slot, wanted, order, version: this.#versions[slot] }, [order.buffer]);
  }

  /**
   * An order beside those of the pictures, which do not wait for it.
   * @param {{first: number, next: number, blend: number, x: number, y: number, z: number}} wanted as for {@link request}
   * @returns {Promise<?Uint32Array>} null where there is none
   */
  aside(slot, wanted) {
    const order = new Uint32Array(this.#clips[slot].clip.count);
    if (this.#local) return Promise.resolve(this.#local.sort(slot, wanted, order) ? order : null);
    const aside = ++this.#last;
    this.#worker.postMessage({ slot, wanted, order, version: this.#versions[slot], aside }, [order.buffer]);
    return new Promise((resolve) => this.#asides.set(aside, resolve));
  }

  dispose() {
    this.#worker?.terminate();
    this.#dropAsides();
    URL.revokeObjectURL(this.#url);
    this.#versions.fill(-1); // deaf to what is still on its way
    this.#clips = [null, null];
  }

  #introduce(slot) {
    const held = this.#clips[slot];
    const clip = held && { count: held.clip.count, step: held.clip.step };
    if (this.#local) this.#local.setClip(slot, clip);
    else this.#worker.postMessage({ slot, clip });
    for (let index = 0; index < (held?.clip.ready ?? 0); index++) this.addFrame(slot, index);
  }

  #dropAsides() {
    for (const resolve of this.#asides.values()) resolve(null);
    this.#asides.clear();
  }

  #arrived({ slot, order, sorted, version, aside, ms }) {
    if (aside) {
      this.#asides.get(aside)?.(sorted && version === this.#versions[slot] ? order : null);
      return this.#asides.delete(aside);
    }
    if (version !== this.#versions[slot]) return; // of a clip that has left
    this.#clips[slot].order = order;
    if (sorted) this.#onOrder(slot, order, ms);
  }

  /** Pages may forbid workers of their own making; an answer still awaited is made up for here. */
  #fallBack() {
    this.#worker?.terminate();
    this.#worker = null;
    this.#dropAsides();
    this.#local = makeSorter();
    for (const slot of [0, 1]) {
      const held = this.#clips[slot];
      if (!held) continue;
      this.#introduce(slot);
      if (held.order) continue;
      held.order = new Uint32Array(held.clip.count);
      this.request(slot, held.waiting);
    }
  }
}
