// A number that stands for something, such as 0 for the preset's, reads as that word. What is stored stays the number.
import { app } from "../../scripts/app.js";

/** Words by number, as the node's schema gives them for an input. */
function wordsOf(node, name) {
  const { required, optional } = node.constructor.nodeData?.input ?? {};
  const [, options] = required?.[name] ?? optional?.[name] ?? [];
  return options?.a4d_words;
}

/** The page's Vue nodes draw numbers themselves: there the word joins the name. */
function inVue() {
  return Boolean(window.LiteGraph?.vueNodesMode);
}

function read(widget, words) {
  const usual = Object.getOwnPropertyDescriptor(prototypeWith(widget, "_displayValue") ?? {}, "_displayValue")?.get;
  Object.defineProperty(widget, "_displayValue", {
    configurable: true,
    get() {
      return words[this.value] ?? usual?.call(this) ?? String(this.value);
    },
  });
  const { name } = widget;
  const label = () => {
    const word = inVue() ? words[widget.value] : undefined;
    widget.label = word ? `${name} (${word})` : undefined;
  };
  const { callback } = widget;
  widget.callback = function () {
    callback?.apply(this, arguments);
    label();
  };
  label();
  return label;
}

function prototypeWith(object, name) {
  for (let at = Object.getPrototypeOf(object); at; at = Object.getPrototypeOf(at)) if (Object.hasOwn(at, name)) return at;
  return null;
}

app.registerExtension({
  name: "Anchor4D.words",
  nodeCreated(node) {
    if (!node.comfyClass?.startsWith("Anchor4D")) return;
    const labels = [];
    for (const widget of node.widgets ?? []) {
      const words = wordsOf(node, widget.name);
      if (words) labels.push(read(widget, words));
    }
    if (!labels.length) return;
    const { onConfigure } = node;
    node.onConfigure = function () {
      onConfigure?.apply(this, arguments);
      for (const label of labels) label();
    };
  },
});
