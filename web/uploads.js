// Load Driving Video: no player for what none plays. Load Mesh: a button that puts a 3D model of this computer into ComfyUI's input/3d folder and chooses it.
import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";

const FOLDER = "3d";

async function upload(file) {
  const body = new FormData();
  body.append("image", file); // what the host calls any file
  body.append("subfolder", FOLDER);
  const answer = await api.fetchApi("/upload/image", { method: "POST", body });
  if (!answer.ok) throw new Error(`${answer.status} ${answer.statusText}`);
  const { name, subfolder } = await answer.json();
  return subfolder ? `${subfolder}/${name}` : name;
}

/** Before a run the page plays whatever is chosen; a folder or an animated picture ends in "failed to load" there. */
function withoutPlayer(node) {
  const video = node.widgets?.find((widget) => widget.name === "video");
  if (!video) return;
  const hush = () => {
    const shown = app.nodeOutputs?.[node.id]?.images?.[0];
    if (shown?.type === "input" && !/\.(mp4|m4v|mov|webm|mkv|ogv)$/i.test(video.value)) delete app.nodeOutputs[node.id];
  };
  const chosen = video.callback;
  video.callback = function (...values) {
    const result = chosen?.apply(this, values);
    hush();
    return result;
  };
  requestAnimationFrame(hush); // after the first look of the page, which has asked for the same frame before
}

app.registerExtension({
  name: "Anchor4D.uploads",
  nodeCreated(node) {
    if (node.constructor.nodeData?.name === "Anchor4DLoadVideo") withoutPlayer(node);
    const mesh = node.widgets?.find((widget) => widget.name === "mesh");
    const suffixes = node.constructor.nodeData?.input?.required?.mesh?.[1]?.a4d_suffixes;
    if (!mesh || !suffixes) return;
    const input = document.createElement("input");
    Object.assign(input, { type: "file", accept: suffixes.join(), multiple: true });
    input.onchange = async () => {
      try {
        // Textures and buffers beside the model are chosen with it; the model is what the list offers.
        const names = await Promise.all([...input.files].map(upload));
        const chosen = names.find((name) => !/\.(bin|mtl|png|jpe?g|webp)$/i.test(name)) ?? names[0];
        const values = mesh.options.values;
        if (Array.isArray(values) && !values.includes(chosen)) values.push(chosen);
        mesh.value = chosen;
        mesh.callback?.(chosen);
      } catch (error) {
        app.extensionManager?.toast?.add({ severity: "error", summary: "Load Mesh", detail: `Not uploaded: ${error.message}` });
      }
      input.value = "";
      node.setDirtyCanvas?.(true, true);
    };
    const button = node.addWidget("button", "choose 3D model to upload", "", () => input.click(), { serialize: false });
    button.serialize = false;
    const drop = (event) => [...(event.dataTransfer?.files ?? [])].filter((file) => suffixes.some((s) => file.name.toLowerCase().endsWith(s)));
    node.onDragOver = (event) => [...(event.dataTransfer?.items ?? [])].some((item) => item.kind === "file");
    node.onDragDrop = (event) => {
      const files = drop(event);
      if (!files.length) return false;
      const held = new DataTransfer();
      for (const file of files) held.items.add(file);
      input.files = held.files;
      input.onchange();
      return true;
    };
  },
});
