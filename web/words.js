// A number that stands for something, such as 0 for the preset's, reads as that word. What is stored stays the number.
import { app } from "../../scripts/app.js";

/** Words by number, as the node's schema gives them for an input or for one that a choice reveals ("shot.frames"). */
function wordsOf(node, name) {
  const [outer, inner] = name.split(".");
  const found = options(node.constructor.nodeData?.input, outer);
  if (inner === undefined) return found?.a4d_words;
  const chosen = node.widgets.find((widget) => widget.name === outer)?.value;
  return options(found?.options?.find((option) => option.key === chosen)?.inputs, inner)?.a4d_words;
}

function options(inputs, name) {
  return (inputs?.required?.[name] ?? inputs?.optional?.[name])?.[1];
}

/** The page's Vue nodes draw numbers themselves: there the word joins the name. */
function label(widget, words) {
  const word = window.LiteGraph?.vueNodesMode ? words[widget.value] : undefined;
  const name = widget.name.split(".").at(-1);
  widget.label = word ? `${name} (${word})` : widget.a4dLabel;
}

function display(widget, words) {
  let usual = null;
  for (let at = Object.getPrototypeOf(widget); at && !usual; at = Object.getPrototypeOf(at))
    usual = Object.getOwnPropertyDescriptor(at, "_displayValue")?.get;
  Object.defineProperty(widget, "_displayValue", {
    configurable: true,
    get() {
      return words[this.value] ?? usual?.call(this) ?? String(this.value);
    },
  });
}

const seen = new WeakSet();

/** Gives every number of a node its words; a choice may have brought new ones. */
function read(node) {
  for (const widget of node.widgets ?? []) {
    const words = wordsOf(node, widget.name);
    if (!words) continue;
    if (!seen.has(widget)) {
      seen.add(widget);
      widget.a4dLabel = widget.label;
      display(widget, words);
    }
    label(widget, words);
  }
}

app.registerExtension({
  name: "Anchor4D.words",
  nodeCreated(node) {
    if (!node.comfyClass?.startsWith("Anchor4D")) return;
    read(node);
    for (const event of ["onConfigure", "onWidgetChanged"]) {
      const before = node[event];
      node[event] = function () {
        before?.apply(this, arguments);
        read(this);
      };
    }
  },
});
