// .zip archives and what is deflated, with every size known and checked before there is room made for it.

/** Bytes of a member that are unpacked at most. */
const MOST = 1 << 30;
/** Members of an archive, and bytes of their list. */
const ENTRIES = 1 << 16;
const LIST = 1 << 26;

/**
 * The bytes that compressed ones stand for.
 * @param {"gzip" | "deflate-raw"} kind
 * @param {Blob} packed
 * @param {number} size bytes that are wanted; what comes behind is not read
 * @returns {Promise<Uint8Array>} `size` bytes, or fewer where there are no more; it rejects where they are damaged
 */
export async function inflate(kind, packed, size) {
  const out = new Uint8Array(size),
    reader = packed.stream().pipeThrough(new DecompressionStream(kind)).getReader();
  let filled = 0;
  try {
    while (filled < size) {
      const { done, value } = await reader.read();
      if (done) break;
      const part = value.subarray(0, size - filled);
      out.set(part, filled);
      filled += part.length;
    }
  } finally {
    reader.cancel().catch(() => {});
  }
  return out.subarray(0, filled);
}

/** @param {Blob} blob @param {number} [from] @param {number} [to] */
export async function bytesOf(blob, from = 0, to = blob.size) {
  return new Uint8Array(await blob.slice(from, to).arrayBuffer());
}

/**
 * Opens an archive: readers of its members by name, and their unpacked sizes.
 * @param {Blob} archive
 * @param {string} name for messages
 * @returns {Promise<Map<string, {size: number, read: () => Promise<Uint8Array>}>>}
 */
export async function openZip(archive, name) {
  const damaged = () => new Error(`${name}: a damaged .zip, copy or pack it again`);
  const tailStart = Math.max(0, archive.size - 65557),
    tail = await bytesOf(archive, tailStart);
  const view = new DataView(tail.buffer);
  let end = tail.length - 22;
  while (end >= 0 && view.getUint32(end, true) !== 0x06054b50) end--;
  if (end < 0) throw damaged();
  const [count, length, start] = [
    view.getUint16(end + 10, true),
    view.getUint32(end + 12, true),
    view.getUint32(end + 16, true),
  ];
  if (start === 0xffffffff || count === 0xffff)
    throw new Error(`${name}: a .zip of more than 4 GB or 65,535 files, drop its folder`);
  if (start + length > archive.size || length > LIST || count > ENTRIES) throw damaged();
  const list = await bytesOf(archive, start, start + length),
    entry = new DataView(list.buffer);
  const members = new Map();
  for (let n = 0, at = 0; n < count; n++) {
    if (at + 46 > length || entry.getUint32(at, true) !== 0x02014b50) throw damaged();
    const [flags, method] = [entry.getUint16(at + 8, true), entry.getUint16(at + 10, true)];
    const [packed, size, place] = [20, 24, 42].map((offset) => entry.getUint32(at + offset, true));
    const [named, extra, comment] = [28, 30, 32].map((offset) => entry.getUint16(at + offset, true));
    const title = new TextDecoder().decode(list.subarray(at + 46, at + 46 + named));
    at += 46 + named + extra + comment;
    if (title.endsWith("/")) continue;
    const read = async () => {
      if (flags & 1) throw new Error(`${name}: its ${title} is locked by a password, unpack it first`);
      if (method !== 0 && method !== 8)
        throw new Error(`${name}: its ${title} is packed in an unusual way, pack it again as .zip`);
      // Deflate reaches 1032 : 1.
      if (size > MOST || size > 1100 * packed + 64)
        throw new Error(`${name}: its ${title} is too large or damaged, pack it again`);
      const head = new DataView((await bytesOf(archive, place, place + 30)).buffer);
      if (head.byteLength < 30 || head.getUint32(0, true) !== 0x04034b50) throw damaged();
      const from = place + 30 + head.getUint16(26, true) + head.getUint16(28, true);
      if (from + packed > archive.size) throw damaged();
      const content = archive.slice(from, from + packed);
      const bytes = await (method ? inflate("deflate-raw", content, size) : bytesOf(content)).catch(() => new Uint8Array(0));
      if (bytes.length !== size) throw damaged();
      return bytes;
    };
    members.set(title, { size, read });
  }
  return members;
}
