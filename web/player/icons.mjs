// The player's pictograms: strokes on a 20 x 20 grid in the colour of the text beside them.

/** @type {Record<string, string>} Path data; a leading "!" fills the shape. */
const SHAPES = {
  play: "!M6 3.6v12.8L16.4 10z",
  pause: "!M5.5 4h3v12h-3zM11.5 4h3v12h-3z",
  loop: "M4 9V8a3 3 0 0 1 3-3h8M12.5 2.5 15 5l-2.5 2.5M16 11v1a3 3 0 0 1-3 3H5M7.5 17.5 5 15l2.5-2.5",
  pingpong: "M3 7h13M13.5 4.5 16 7l-2.5 2.5M17 13H4M6.5 10.5 4 13l2.5 2.5",
  once: "M3 10h11M11 6.5l3.5 3.5-3.5 3.5M17 4.5v11",
  speed: "M3.6 14.5a7 7 0 1 1 12.8 0M10 11.5 13 7.5M9.2 11.5h1.6",
  splats: "M7.5 8.5m-4 0a4 3 0 1 0 8 0a4 3 0 1 0-8 0M13 12.5m-3.5 0a3.5 2.6 0 1 0 7 0a3.5 2.6 0 1 0-7 0",
  points: "!M5 5h2v2H5zM12 4h2v2h-2zM8.5 9h2v2h-2zM14 10h2v2h-2zM4 12h2v2H4zM10 14.5h2v2h-2z",
  ellipsoids: "M10 10m-7 0a7 4.4 0 1 0 14 0a7 4.4 0 1 0-14 0M10 5.6c2.2 1.2 2.2 7.6 0 8.8M3 10c3 1.8 11 1.8 14 0",
  background: "M4 4h12v12H4zM4 10h12M10 4v12M5 5h4v4H5zM11 11h4v4h-4z",
  film: "M3 4.5h14v11H3zM6 4.5v11M14 4.5v11M3 8.2h3M3 11.8h3M14 8.2h3M14 11.8h3",
  compare: "M3 4.5h14v11H3zM10 3v14M6.8 8 5 10l1.8 2M13.2 8 15 10l-1.8 2",
  frame:
    "M3 7V4.5A1.5 1.5 0 0 1 4.5 3H7M13 3h2.5A1.5 1.5 0 0 1 17 4.5V7M17 13v2.5a1.5 1.5 0 0 1-1.5 1.5H13M7 17H4.5A1.5 1.5 0 0 1 3 15.5V13M10 7.5a2.5 2.5 0 1 0 .01 0z",
  keys: "M10 3.5 16.5 10 10 16.5 3.5 10zM10 7.5v5M7.5 10h5",
  picture: "M3 6.5h3L7.5 4.5h5L14 6.5h3v9H3zM10 8.2a2.8 2.8 0 1 0 .01 0z",
  record: "M3 5.5h9v9H3zM12 9l5-3v8l-5-3",
  ar: "M3 6V3h3M14 3h3v3M17 14v3h-3M6 17H3v-3M10 5.2l4 2.3v4.8l-4 2.4-4-2.4V7.5zM6 7.5l4 2.3 4-2.3M10 9.8v4.9",
  open: "M3 15.5v-11h5l1.5 2H17v9zM10 13.5v-4.5M7.8 11 10 8.8 12.2 11",
  full: "M3 8V3h5M12 3h5v5M17 12v5h-5M8 17H3v-5",
  shrink: "M8 3v5H3M17 8h-5V3M12 17v-5h5M3 12h5v5",
  help: "M10 3a7 7 0 1 0 .01 0zM8 8a2 2 0 1 1 2.9 1.8c-.6.3-.9.7-.9 1.4M10 13.6v.2",
  more: "!M4 8.6h2.8v2.8H4zM8.6 8.6h2.8v2.8H8.6zM13.2 8.6H16v2.8h-2.8z",
  close: "M5 5l10 10M15 5 5 15",
  check: "M4 10.5 8.2 14.5 16 5.5",
};

/** An inline SVG. @param {string} name @returns {string} */
export function icon(name) {
  const shape = SHAPES[name];
  const filled = shape.startsWith("!");
  const paint = filled ? 'fill="currentColor"' : 'fill="none" stroke="currentColor"';
  return (
    `<svg viewBox="0 0 20 20" width="18" height="18" aria-hidden="true" ${paint} stroke-width="1.5" ` +
    `stroke-linecap="round" stroke-linejoin="round"><path d="${filled ? shape.slice(1) : shape}"/></svg>`
  );
}
