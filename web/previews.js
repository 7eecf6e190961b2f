// Results in the node: in place of the last live preview, which the page keeps showing, and with room to be seen.
import { app } from "../../scripts/app.js";

/** Height that a picture gets at least, and a text above it, in the page's units. */
const PICTURE = 240;
const TEXT = 110;

/** In canvas mode a picture has what is left below the widgets, which is nothing where a choice has shrunk the node. */
function makeRoom(node) {
  if (window.LiteGraph?.vueNodesMode) return;
  const widgets = (node.widgets ?? []).filter((widget) => !widget.hidden && !widget.options?.hidden);
  const own = widgets.filter((widget) => !widget.name?.startsWith("$$"));
  const bottom = Math.max(60, ...own.map((widget) => (widget.y ?? 0) + (widget.computedHeight ?? 24)));
  const needed = bottom + (widgets.some((widget) => widget.name === "$$node-text-preview") ? TEXT : 0) + PICTURE;
  if (node.size[1] < needed) node.setSize([node.size[0], needed]);
}

app.registerExtension({
  name: "Anchor4D.previews",
  nodeCreated(node) {
    if (!node.comfyClass?.startsWith("Anchor4D")) return;
    const { onExecuted, onConfigure } = node;
    node.onExecuted = function (output) {
      onExecuted?.call(this, output);
      const page = document.getElementById("vue-app")?.__vue_app__;
      const outputs = page?.config.globalProperties.$pinia?._s.get("nodeOutput");
      const root = !this.graph || this.graph.isRootGraph !== false;
      outputs?.revokePreviewsByLocatorId?.(root ? String(this.id) : `${this.graph.id}:${this.id}`);
      this.images = this.preview = undefined; // canvas mode draws these again only when they change
      if (output?.images?.length) makeRoom(this);
      this.setDirtyCanvas?.(true, true);
    };
    // A choice among the widgets shrinks the node while its values are set: the size that was saved holds.
    node.onConfigure = function (saved) {
      onConfigure?.apply(this, arguments);
      const [width, height] = saved?.size ?? [0, 0];
      if (width > this.size[0] || height > this.size[1])
        this.setSize([Math.max(width, this.size[0]), Math.max(height, this.size[1])]);
    };
  },
});
