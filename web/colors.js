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

app.registerExtension({
  name: "Anchor4D.colors",
  setup() {
    const canvas = window.LGraphCanvas ?? app.canvas?.constructor;
    if (canvas?.link_type_colors) Object.assign(canvas.link_type_colors, COLORS);
    if (app.canvas?.default_connection_color_byType) Object.assign(app.canvas.default_connection_color_byType, COLORS);
    for (const [type, color] of Object.entries(COLORS))
      document.documentElement.style.setProperty(`--color-datatype-${type}`, color);
  },
});
