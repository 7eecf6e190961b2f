// A WebM file (Matroska, one video track) of encoded pictures, all in memory.

/** Element ids. */
const ID = {
  EBML: 0x1a45dfa3,
  Version: 0x4286,
  ReadVersion: 0x42f7,
  MaxIDLength: 0x42f2,
  MaxSizeLength: 0x42f3,
  DocType: 0x4282,
  DocTypeVersion: 0x4287,
  DocTypeReadVersion: 0x4285,
  Segment: 0x18538067,
  Info: 0x1549a966,
  TimestampScale: 0x2ad7b1,
  Duration: 0x4489,
  MuxingApp: 0x4d80,
  WritingApp: 0x5741,
  Tracks: 0x1654ae6b,
  TrackEntry: 0xae,
  TrackNumber: 0xd7,
  TrackUID: 0x73c5,
  TrackType: 0x83,
  CodecID: 0x86,
  DefaultDuration: 0x23e383,
  Video: 0xe0,
  PixelWidth: 0xb0,
  PixelHeight: 0xba,
  AlphaMode: 0x53c0,
  MaxBlockAdditionID: 0x55ee,
  Cues: 0x1c53bb6b,
  CuePoint: 0xbb,
  CueTime: 0xb3,
  CueTrackPositions: 0xb7,
  CueTrack: 0xf7,
  CueClusterPosition: 0xf1,
  Cluster: 0x1f43b675,
  Timestamp: 0xe7,
  SimpleBlock: 0xa3,
  BlockGroup: 0xa0,
  Block: 0xa1,
  BlockAdditions: 0x75a1,
  BlockMore: 0xa6,
  BlockAddID: 0xee,
  BlockAdditional: 0xa5,
  BlockDuration: 0x9b,
  ReferenceBlock: 0xfb,
};

/** Big-endian bytes of a whole number. @param {number} value @param {number} [length] */
function uint(value, length = 0) {
  const bytes = [];
  for (let rest = value; rest > 0 || bytes.length < Math.max(length, 1); rest = Math.floor(rest / 256))
    bytes.unshift(rest % 256);
  return Uint8Array.from(bytes);
}

/** @param {number} value */
function float(value) {
  const bytes = new Uint8Array(8);
  new DataView(bytes.buffer).setFloat64(0, value);
  return bytes;
}

/** @param {string} text */
const ascii = (text) => new TextEncoder().encode(text);

/** @param {Uint8Array[]} parts */
function joined(parts) {
  const all = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
  let offset = 0;
  for (const part of parts) {
    all.set(part, offset);
    offset += part.length;
  }
  return all;
}

/** An element with an 8-byte length. @param {number} id @param {...Uint8Array} content */
function element(id, ...content) {
  const size = uint(
    content.reduce((sum, part) => sum + part.length, 0),
    8,
  );
  size[0] = 0x01;
  return joined([uint(id), size, ...content]);
}

/**
 * @typedef {object} Packet
 * @property {Uint8Array} data encoded colours
 * @property {Uint8Array | null} alpha encoded opacity, as brightness
 * @property {number} time milliseconds
 * @property {boolean} key decodes without the ones before it
 */

/**
 * A playable, seekable WebM file.
 * @param {Packet[]} packets in order
 * @param {{width: number, height: number, fps: number, codec: "V_VP8" | "V_VP9"}} track
 * @returns {Blob}
 */
export function webm(packets, { width, height, fps, codec }) {
  const opaque = packets.every((packet) => !packet.alpha);
  const clusters = [];
  for (const packet of packets) {
    if (packet.key || packet.time - clusters.at(-1).time > 30000) clusters.push({ time: packet.time, packets: [] });
    clusters.at(-1).packets.push(packet);
  }
  const duration = 1000 / fps;
  const bytes = clusters.map(({ time, packets: inside }) =>
    element(
      ID.Cluster,
      element(ID.Timestamp, uint(time)),
      ...inside.map((packet, index) => {
        const head = Uint8Array.of(0x81, ...uint(packet.time - time, 2), packet.key && opaque ? 0x80 : 0);
        if (opaque) return element(ID.SimpleBlock, head, packet.data);
        const alpha = element(ID.BlockMore, element(ID.BlockAddID, uint(1)), element(ID.BlockAdditional, packet.alpha));
        const before = packet.key
          ? []
          : [element(ID.ReferenceBlock, Uint8Array.of(...int16(inside[index - 1].time - packet.time)))];
        return element(
          ID.BlockGroup,
          element(ID.Block, head, packet.data),
          element(ID.BlockDuration, uint(Math.round(duration))),
          ...before,
          element(ID.BlockAdditions, alpha),
        );
      }),
    ),
  );
  const info = element(
    ID.Info,
    element(ID.TimestampScale, uint(1e6)),
    element(ID.Duration, float(packets.at(-1).time + duration)),
    element(ID.MuxingApp, ascii("Anchor4D")),
    element(ID.WritingApp, ascii("Anchor4D")),
  );
  const video = [element(ID.PixelWidth, uint(width)), element(ID.PixelHeight, uint(height))];
  if (!opaque) video.push(element(ID.AlphaMode, uint(1)));
  const entry = [
    element(ID.TrackNumber, uint(1)),
    element(ID.TrackUID, uint(1)),
    element(ID.TrackType, uint(1)),
    element(ID.CodecID, ascii(codec)),
    element(ID.DefaultDuration, uint(Math.round(1e9 / fps))),
    element(ID.Video, ...video),
  ];
  if (!opaque) entry.push(element(ID.MaxBlockAdditionID, uint(1)));
  const tracks = element(ID.Tracks, element(ID.TrackEntry, ...entry));
  const cues = (/** @type {number} */ start) => {
    let position = start;
    return element(
      ID.Cues,
      ...clusters.map(({ time }, index) => {
        const place = element(
          ID.CueTrackPositions,
          element(ID.CueTrack, uint(1)),
          element(ID.CueClusterPosition, uint(position, 8)),
        );
        position += bytes[index].length;
        return element(ID.CuePoint, element(ID.CueTime, uint(time)), place);
      }),
    );
  };
  const first = info.length + tracks.length;
  const header = element(
    ID.EBML,
    element(ID.Version, uint(1)),
    element(ID.ReadVersion, uint(1)),
    element(ID.MaxIDLength, uint(4)),
    element(ID.MaxSizeLength, uint(8)),
    element(ID.DocType, ascii("webm")),
    element(ID.DocTypeVersion, uint(4)),
    element(ID.DocTypeReadVersion, uint(2)),
  );
  const segment = element(ID.Segment, info, tracks, cues(first + cues(0).length), ...bytes);
  return new Blob([header, segment], { type: "video/webm" });
}

/** @param {number} value */
function int16(value) {
  const bytes = new Uint8Array(2);
  new DataView(bytes.buffer).setInt16(0, value);
  return bytes;
}
