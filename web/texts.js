// What a node said last stays in it after the run: verdict, score, size. Pages since 1.5x take their own line of progress away
// when the job ends; older ones keep it, and then nothing is added.
import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";

/** The page's own line of progress, and ours. */
const PAGES = "$$node-text-preview";
const OURS = "anchor4d_said";
/** Of a line, and what the page keeps free around a widget, in its units. */
const LINE = 17;
const MARGINS = 26;

/** Last texts of this run by the node's place: its id, in subgraphs after the ids of the boxes around it. */
const texts = new Map();

function nodeAt(place) {
  let graph = app.rootGraph ?? app.graph;
  let node = null;
  for (const id of String(place).split(":")) {
    node = graph?.getNodeById(Number(id)) ?? graph?.getNodeById(id) ?? null;
    graph = node?.subgraph;
  }
  return node;
}

/** Writes a text below a node's widgets; an empty one takes no room. */
function write(node, text) {
  let widget = node.widgets?.find(({ name }) => name === OURS);
  if (!widget) {
    if (!text) return;
    const element = document.createElement("div");
    Object.assign(element.style, {
      whiteSpace: "pre-wrap", overflow: "auto", fontSize: "12px", lineHeight: `${LINE}px`, userSelect: "text",
      color: "var(--input-text, inherit)", padding: "0 4px", boxSizing: "border-box",
    });
    const height = () => (element.textContent ? LINE * Math.ceil(lines(element.textContent, node.size[0])) + MARGINS : 0);
    widget = node.addDOMWidget(OURS, OURS, element, {
      serialize: false,
      hideOnZoom: false,
      getMinHeight: height,
      getMaxHeight: height,
    });
    widget.serialize = false;
  }
  widget.element.textContent = text;
  const needed = node.computeSize?.()[1] ?? 0;
  if (!window.LiteGraph?.vueNodesMode && node.size[1] < needed) node.setSize([node.size[0], needed]);
  node.setDirtyCanvas?.(true, true);
}

function lines(text, width) {
  const letters = Math.max(20, (width - 30) / 6.3);
  return text.split("\n").reduce((sum, line) => sum + Math.max(1, Math.ceil(line.length / letters)), 0);
}

function settle() {
  for (const [place, text] of texts) {
    const node = nodeAt(place);
    if (node && !node.widgets?.some(({ name }) => name === PAGES)) write(node, text);
  }
  texts.clear();
}

app.registerExtension({
  name: "Anchor4D.texts",
  setup() {
    api.addEventListener("progress_text", ({ detail }) => {
      const node = detail?.nodeId && nodeAt(detail.nodeId);
      if (!node?.comfyClass?.startsWith("Anchor4D") || !detail.text) return;
      // How long it has been at work is no news once it is done.
      texts.set(String(detail.nodeId), detail.text.replace(/\n?at work for \d+ s$/, ""));
      write(node, "");
    });
    for (const end of ["execution_success", "execution_error", "execution_interrupted"])
      api.addEventListener(end, () => setTimeout(settle, 500)); // after the page has taken its own away
  },
});
