// The page keeps showing a node's last live preview in place of its result. This drops the preview once the result is there.
import { api } from "../../scripts/api.js";

api.addEventListener("executed", ({ detail }) => {
  if (!detail.output?.images?.some((image) => image.filename.startsWith("anchor4d_preview"))) return;
  const page = document.getElementById("vue-app")?.__vue_app__;
  const outputs = page?.config.globalProperties.$pinia?._s.get("nodeOutput");
  outputs?.revokePreviewsByExecutionId?.(detail.display_node ?? detail.node);
});
