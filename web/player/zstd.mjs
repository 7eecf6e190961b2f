// Zstandard frames (RFC 8878) unpacked, without dictionaries: browsers have gzip, but not this. The checksum is not looked at.

const MAGIC = 0xfd2fb528,
  SKIPPABLE = 0x184d2a5;
const BLOCK = 1 << 17;

/** A table's greatest accuracy and its predefined probabilities: lengths of literals, offsets, lengths of matches. */
const LITERALS = {
  most: 9,
  accuracy: 6,
  usual: [4, 3, ...fill(11, 2), 1, 1, 1, ...fill(9, 2), 3, 2, ...fill(5, 1), ...fill(4, -1)],
};
const OFFSETS = { most: 8, accuracy: 5, usual: [...fill(6, 1), 2, 2, 2, ...fill(15, 1), ...fill(5, -1)] };
const MATCHES = { most: 9, accuracy: 6, usual: [1, 4, 3, ...fill(6, 2), ...fill(37, 1), ...fill(7, -1)] };
/** Least lengths by code, and the bits that come on top. */
const LITERAL_BITS = [...fill(16, 0), 1, 1, 1, 1, 2, 2, 3, 3, 4, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16];
const MATCH_BITS = [...fill(32, 0), 1, 1, 1, 1, 2, 2, 3, 3, 4, 4, 5, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16];
const LITERAL_BASE = bases(LITERAL_BITS, 0),
  MATCH_BASE = bases(MATCH_BITS, 3);

function fill(/** @type {number} */ count, /** @type {number} */ value) {
  return new Array(count).fill(value);
}

function bases(/** @type {number[]} */ bits, /** @type {number} */ first) {
  return bits.map((_, code) => bits.slice(0, code).reduce((sum, more) => sum + 2 ** more, first));
}

/**
 * Unpacks.
 * @param {Uint8Array} data one or more frames
 * @param {number} size bytes that they stand for
 * @returns {Uint8Array}
 * @throws {RangeError} where they are damaged, or stand for another number
 */
export function unzstd(data, size) {
  const out = new Uint8Array(size);
  let at = 0,
    filled = 0;
  while (at < data.length) {
    const magic = word(data, at, 4);
    if (magic >>> 4 === SKIPPABLE) at += 8 + word(data, at + 4, 4);
    else if (magic === MAGIC) [at, filled] = frame(data, at + 4, out, filled);
    else throw damaged();
  }
  if (filled !== size) throw damaged();
  return out;
}

function damaged() {
  return new RangeError("damaged");
}

/** A little-endian number of bytes. @param {Uint8Array} data @param {number} at @param {number} bytes */
function word(data, at, bytes) {
  if (at + bytes > data.length) throw damaged();
  let value = 0;
  for (let k = bytes - 1; k >= 0; k--) value = value * 256 + data[at + k];
  return value;
}

/** @returns {[number, number]} where it ends in the data and in what is unpacked */
function frame(
  /** @type {Uint8Array} */ data,
  /** @type {number} */ at,
  /** @type {Uint8Array} */ out,
  /** @type {number} */ filled,
) {
  const flags = word(data, at++, 1),
    single = flags & 32;
  if (flags & 11) throw damaged(); // of a dictionary, or of what is yet to come
  if (!single) at++; // the window: all that is unpacked is at hand
  at += [single ? 1 : 0, 2, 4, 8][flags >> 6];
  const state = { out, filled, start: filled, repeats: [1, 4, 8], huffman: null, tables: [null, null, null] };
  for (let last = 0; !last;) {
    const head = word(data, at, 3),
      kind = (head >> 1) & 3,
      length = head >> 3;
    last = head & 1;
    at += 3;
    const taken = kind === 1 ? 1 : length;
    if (kind === 3 || length > (kind === 2 ? BLOCK : out.length) || at + taken > data.length) throw damaged();
    if (kind === 2) block(data.subarray(at, at + length), state);
    else {
      if (state.filled + length > out.length) throw damaged();
      if (kind === 0) out.set(data.subarray(at, at + length), state.filled);
      else out.fill(data[at], state.filled, state.filled + length);
      state.filled += length;
    }
    at += taken;
  }
  return [at + (flags & 4 ? 4 : 0), state.filled];
}

/** A compressed block: literals, then sequences of literals and matches. */
function block(/** @type {Uint8Array} */ data, /** @type {any} */ state) {
  const [literals, start] = literalsOf(data, state);
  let at = start,
    count = word(data, at++, 1);
  if (count >= 128) count = count < 255 ? ((count - 128) << 8) + word(data, at++, 1) : word(data, at, 2) + 0x7f00;
  if (data[start] === 255) at += 2;
  const { out } = state;
  let from = 0;
  const literal = (/** @type {number} */ length) => {
    if (from + length > literals.length || state.filled + length > out.length) throw damaged();
    if (length > 16) out.set(literals.subarray(from, from + length), state.filled);
    else for (let k = 0; k < length; k++) out[state.filled + k] = literals[from + k];
    from += length;
    state.filled += length;
  };
  if (count) {
    const modes = word(data, at++, 1);
    [LITERALS, OFFSETS, MATCHES].forEach((kind, k) => {
      const mode = (modes >> (6 - 2 * k)) & 3;
      if (mode === 0) state.tables[k] = table(kind.usual, kind.accuracy);
      else if (mode === 1) state.tables[k] = { accuracy: 0, symbols: [word(data, at++, 1)], bits: [0], bases: [0] };
      else if (mode === 2) {
        const [read, end] = probabilities(data, at, kind.most);
        state.tables[k] = read;
        at = end;
      } else if (!state.tables[k]) throw damaged();
    });
    const bits = new Backwards(data, at, data.length),
      [lengths, offsets, matches] = state.tables,
      { repeats } = state;
    let [a, b, c] = [bits.read(lengths.accuracy), bits.read(offsets.accuracy), bits.read(matches.accuracy)];
    for (let n = 0; n < count; n++) {
      const [la, ob, mc] = [lengths.symbols[a], offsets.symbols[b], matches.symbols[c]];
      if (la > 35 || ob > 31 || mc > 52) throw damaged();
      const value = 2 ** ob + bits.read(ob);
      const match = MATCH_BASE[mc] + bits.read(MATCH_BITS[mc]),
        length = LITERAL_BASE[la] + bits.read(LITERAL_BITS[la]);
      let offset = value - 3;
      const known = value > 3 ? 3 : value - 1 + (length === 0 ? 1 : 0);
      if (value <= 3) offset = known < 3 ? repeats[known] : repeats[0] - 1;
      if (known > 1) repeats[2] = repeats[1];
      if (known > 0) repeats[1] = repeats[0];
      repeats[0] = offset;
      literal(length);
      const to = state.filled,
        back = to - offset;
      if (offset < 1 || back < state.start || to + match > out.length) throw damaged();
      if (offset >= match) out.copyWithin(to, back, back + match);
      else for (let k = 0; k < match; k++) out[to + k] = out[back + k];
      state.filled += match;
      if (n === count - 1) break;
      a = lengths.bases[a] + bits.read(lengths.bits[a]);
      c = matches.bases[c] + bits.read(matches.bits[c]);
      b = offsets.bases[b] + bits.read(offsets.bits[b]);
    }
    if (bits.left) throw damaged();
  }
  literal(literals.length - from);
}

/** @returns {[Uint8Array, number]} the literals, and where they end */
function literalsOf(/** @type {Uint8Array} */ data, /** @type {any} */ state) {
  const first = word(data, 0, 1),
    kind = first & 3,
    format = (first >> 2) & 3;
  if (kind < 2) {
    const bytes = [1, 2, 1, 3][format],
      length = word(data, 0, bytes) >> (bytes === 1 ? 3 : 4);
    if (length > BLOCK) throw damaged();
    if (kind === 1) return [new Uint8Array(length).fill(word(data, bytes, 1)), bytes + 1];
    if (bytes + length > data.length) throw damaged();
    return [data.subarray(bytes, bytes + length), bytes + length];
  }
  const bytes = [3, 3, 4, 5][format],
    each = 2 ** [10, 10, 14, 18][format],
    both = Math.floor(word(data, 0, bytes) / 16);
  const length = both % each,
    packed = Math.floor(both / each),
    end = bytes + packed;
  if (length > BLOCK || end > data.length) throw damaged();
  let at = bytes;
  if (kind === 2) [state.huffman, at] = huffman(data.subarray(0, end), at);
  if (!state.huffman) throw damaged();
  const out = new Uint8Array(length);
  if (format === 0) unhuffman(data, at, end, state.huffman, out);
  else {
    const part = (length + 3) >> 2,
      sizes = [0, 2, 4].map((k) => word(data, at + k, 2));
    at += 6;
    [0, 1, 2, 3].forEach((k) => {
      const stop = k < 3 ? at + sizes[k] : end;
      if (stop > end || 3 * part > length) throw damaged();
      unhuffman(data, at, stop, state.huffman, out.subarray(k * part, k < 3 ? (k + 1) * part : length));
      at = stop;
    });
  }
  return [out, end];
}

/** Reads the bits of a stream from its end. */
class Backwards {
  #data;
  #start;
  /** Bits that are left; below 0 where more were read than there are. */
  left;

  constructor(/** @type {Uint8Array} */ data, /** @type {number} */ start, /** @type {number} */ end) {
    if (end <= start || !data[end - 1]) throw damaged();
    this.#data = data;
    this.#start = start;
    this.left = 8 * (end - start) - 1 - (Math.clz32(data[end - 1]) - 24);
  }

  /** The next bits, up to 25 of them, with zeros beyond the stream's start. @param {number} count */
  peek(count) {
    const from = this.left - count;
    if (from < 0) return this.left > 0 ? (this.#at(0, this.left) << -from) >>> 0 : 0;
    return this.#at(from, count);
  }

  /** @param {number} count up to 31 */
  read(count) {
    if (count > 24) return this.read(count - 16) * 65536 + this.read(16);
    const value = count ? this.peek(count) : 0;
    this.left -= count;
    if (this.left < -64) throw damaged();
    return value;
  }

  #at(/** @type {number} */ bit, /** @type {number} */ count) {
    const at = this.#start + (bit >> 3),
      d = this.#data;
    return ((d[at] | (d[at + 1] << 8) | (d[at + 2] << 16) | (d[at + 3] << 24)) >>> (bit & 7)) & ((1 << count) - 1);
  }
}

/** A table of states from the probabilities of symbols. */
function table(/** @type {number[]} */ shares, /** @type {number} */ accuracy) {
  const size = 1 << accuracy,
    symbols = new Uint8Array(size),
    bits = new Uint8Array(size),
    starts = new Uint16Array(size);
  const next = shares.map((share) => (share < 0 ? 1 : share));
  let high = size;
  shares.forEach((share, symbol) => {
    if (share < 0) symbols[--high] = symbol;
  });
  let place = 0;
  shares.forEach((share, symbol) => {
    for (let n = 0; n < share; n++) {
      symbols[place] = symbol;
      do place = (place + (size >> 1) + (size >> 3) + 3) & (size - 1);
      while (place >= high);
    }
  });
  if (place) throw damaged();
  for (let state = 0; state < size; state++) {
    const value = next[symbols[state]]++;
    bits[state] = accuracy - (31 - Math.clz32(value));
    starts[state] = (value << bits[state]) - size;
  }
  return { accuracy, symbols, bits, bases: starts };
}

/** @returns {[ReturnType<typeof table>, number]} the table that is described there, and where that ends */
function probabilities(/** @type {Uint8Array} */ data, /** @type {number} */ start, /** @type {number} */ most) {
  let bit = 8 * start;
  const read = (/** @type {number} */ count) => {
    let value = 0;
    for (let k = 0; k < count; k++, bit++) value |= ((data[bit >> 3] >> (bit & 7)) & 1) << k;
    return value;
  };
  const accuracy = read(4) + 5,
    shares = [];
  if (accuracy > most) throw damaged();
  for (let left = 1 << accuracy; left > 0;) {
    const bits = 32 - Math.clz32(left + 1),
      low = (1 << (bits - 1)) - 1,
      spare = (1 << bits) - 2 - left;
    let value = read(bits);
    if ((value & low) < spare) {
      bit--;
      value &= low;
    } else if (value > low) value -= spare;
    const share = value - 1;
    left -= Math.abs(share);
    shares.push(share);
    if (share === 0)
      for (let more = 3; more === 3;) {
        more = read(2);
        shares.push(...fill(more, 0));
      }
    if (left < 0 || shares.length > 256 || bit > 8 * data.length) throw damaged();
  }
  return [table(shares, accuracy), (bit + 7) >> 3];
}

/** @returns {[{most: number, symbols: Uint8Array, bits: Uint8Array}, number]} a table of codes, and where it ends */
function huffman(/** @type {Uint8Array} */ data, /** @type {number} */ start) {
  const head = word(data, start, 1),
    weights = /** @type {number[]} */ ([]);
  let end = start + 1;
  if (head >= 128) {
    for (let k = 0; k < head - 127; k++) weights.push((word(data, end + (k >> 1), 1) >> (k & 1 ? 0 : 4)) & 15);
    end += (head - 126) >> 1;
  } else {
    end += head;
    if (end > data.length) throw damaged();
    const [fse, at] = probabilities(data.subarray(0, end), start + 1, 6),
      bits = new Backwards(data, at, end);
    const states = [bits.read(fse.accuracy), bits.read(fse.accuracy)];
    for (let k = 0; ; k ^= 1) {
      weights.push(fse.symbols[states[k]]);
      states[k] = fse.bases[states[k]] + bits.read(fse.bits[states[k]]);
      if (bits.left < 0) {
        weights.push(fse.symbols[states[k ^ 1]]);
        break;
      }
      if (weights.length > 254) throw damaged();
    }
  }
  const sum = weights.reduce((total, weight) => total + (weight ? 2 ** (weight - 1) : 0), 0);
  const most = 32 - Math.clz32(sum),
    left = 2 ** most - sum;
  if (!sum || most > 11 || left !== 2 ** Math.floor(Math.log2(left)) || weights.length > 255) throw damaged();
  weights.push(Math.log2(left) + 1);
  const symbols = new Uint8Array(2 ** most),
    bits = new Uint8Array(2 ** most);
  let place = 0;
  for (let weight = 1; weight <= most; weight++)
    weights.forEach((its, symbol) => {
      if (its !== weight) return;
      const next = place + 2 ** (weight - 1);
      symbols.fill(symbol, place, next);
      bits.fill(most + 1 - weight, place, next);
      place = next;
    });
  if (place !== 2 ** most) throw damaged();
  return [{ most, symbols, bits }, end];
}

function unhuffman(
  /** @type {Uint8Array} */ data,
  /** @type {number} */ start,
  /** @type {number} */ end,
  /** @type {any} */ codes,
  /** @type {Uint8Array} */ out,
) {
  const stream = new Backwards(data, start, end),
    { most, symbols, bits } = codes;
  for (let i = 0; i < out.length; i++) {
    const code = stream.peek(most);
    out[i] = symbols[code];
    stream.left -= bits[code];
  }
  if (stream.left) throw damaged();
}
