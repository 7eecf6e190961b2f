// A colour for the links of each of this pack's types, in both of the page's node styles.
import { app } from "../../scripts/app.js";

const COLORS = {
  A4D_VIDEO: "#4fa3d9",
  A4D_MESH: "#c98f4a",
  A4D_ALIGNMENT: "#e0b64c",
  A4D_CAMERAS: "#d9c66b",
  A4D_TRAJECTORY: "#a9c46c",
  A4D_DISTANCE: "#d98f6b",
  A4D_OBJECTIVES: "#7fb069",
  A4D_TURNS: "#5f9e7f",
  A4D_PRIOR: "#c46ab0",
  A4D_ANCHORS: "#d87ca8",
  A4D_SCENE: "#9b7fe0",
};

/** Types of sockets that take several, by the first of ours among them. */
const colors = { ...COLORS };

/** The page empties what its palette does not name, each time it loads one: our colours stand where it gives none. */
function keep(map) {
  if (!map) return;
  for (const [type, color] of Object.entries(colors)) {
    let given = map[type];
    Object.defineProperty(map, type, {
      configurable: true,
      enumerable: true,
      get: () => given || color,
      set: (value) => (given = value),
    });
  }
}

app.registerExtension({
  name: "Anchor4D.colors",
  beforeRegisterNodeDef(_, { input }) {
    for (const section of [input?.required, input?.optional])
      for (const [type] of Object.values(section ?? {})) {
        const ours = typeof type === "string" && type.includes(",") && type.split(",").find((part) => part in COLORS);
        if (ours) colors[type] = COLORS[ours];
      }
  },
  setup() {
    keep((window.LGraphCanvas ?? app.canvas?.constructor)?.link_type_colors);
    keep(app.canvas?.default_connection_color_byType);
    const style = document.createElement("style");
    const lines = Object.entries(COLORS).map(([type, color]) => `--color-datatype-${type}: ${color};`);
    style.textContent = `:root { ${lines.join(" ")} }`;
    document.head.append(style);
  },
});
