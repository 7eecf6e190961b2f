// The page keeps showing a node's last live preview in place of its result. This drops the preview once the result is there.
import { app } from "../../scripts/app.js";

app.registerExtension({
  name: "Anchor4D.previews",
  nodeCreated(node) {
    if (!node.comfyClass?.startsWith("Anchor4D")) return;
    const onExecuted = node.onExecuted;
    node.onExecuted = function (output) {
      onExecuted?.call(this, output);
      const page = document.getElementById("vue-app")?.__vue_app__;
      const outputs = page?.config.globalProperties.$pinia?._s.get("nodeOutput");
      const root = !this.graph || this.graph.isRootGraph !== false;
      outputs?.revokePreviewsByLocatorId?.(root ? String(this.id) : `${this.graph.id}:${this.id}`);
      this.images = this.preview = undefined; // canvas mode draws these again only when they change
      this.setDirtyCanvas?.(true, true);
    };
  },
});
