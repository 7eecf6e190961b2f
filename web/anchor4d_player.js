// Play Scene: the player in the node. It is loaded when the first such node appears.
import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";

const NODE = "Anchor4DPlayScene";
const HEIGHT = 300;

/** How to start anew, by node. */
const resets = new WeakMap();

/** The view widget keeps the player's JSON; nobody needs to see it. */
function hide(widget) {
  widget.hidden = true;
  widget.options.hidden = true;
  widget.computeSize = () => [0, -4];
}

function parsed(text) {
  try {
    return JSON.parse(text || "{}");
  } catch {
    return {};
  }
}

/** The node that an input comes from. */
function source(node, name) {
  const slot = node.inputs?.findIndex((input) => input.name === name) ?? -1;
  return slot < 0 ? null : (node.getInputNode?.(slot) ?? null);
}

function follows(node, origin, seen = new Set()) {
  if (!node || seen.has(node)) return false;
  seen.add(node);
  return (node.inputs ?? []).some((_, slot) => {
    const before = node.getInputNode?.(slot);
    return before === origin || follows(before, origin, seen);
  });
}

/** Names of the two sides of a comparison: an edit and what it is made from, else the titles of the nodes they come from. */
function labels(node) {
  const [left, right] = ["scene", "compare"].map((name) => source(node, name));
  if (!left || !right || left === right) return ["scene", "compare"];
  if (follows(right, left)) return ["before", "after"];
  if (follows(left, right)) return ["after", "before"];
  return [left.title, right.title];
}

app.registerExtension({
  name: "Anchor4D.player",

  getNodeMenuItems(node) {
    return resets.has(node) ? [{ content: "Reset the view", callback: resets.get(node) }] : [];
  },

  async nodeCreated(node) {
    if (node.comfyClass !== NODE) return;
    const place = document.createElement("div");
    place.className = "anchor4d-player";
    place.dataset.captureWheel = "true"; // Vue nodes leave the wheel to what is marked so and has been clicked
    Object.assign(place.style, { position: "relative", width: "100%", height: "100%", minHeight: "0" });
    const view = node.widgets.find((widget) => widget.name === "view");
    hide(view);
    const widget = node.addDOMWidget("player", "anchor4d_player", place, {
      serialize: false,
      hideOnZoom: false,
      getMinHeight: () => HEIGHT,
    });
    widget.serialize = false;
    node.setSize([Math.max(node.size[0], 380), Math.max(node.size[1], node.computeSize()[1])]);

    let player = null;
    let removed = false;
    let shown = "";
    const title = () => (node.title || "anchor4d").replace(/[^\w -]+/g, "").trim() || "anchor4d";
    const loaded = import("./player/player.mjs").then(({ Player }) => {
      if (removed) return null;
      player = new Player(place, {
        name: title(),
        view: parsed(view.value),
        onView(changed) {
          view.value = JSON.stringify(changed);
          view.callback?.(view.value);
          app.graph?.setDirtyCanvas(true, false);
          app.extensionManager?.workflow?.activeWorkflow?.changeTracker?.checkState?.();
        },
      });
      player.say("Run the workflow to see the scene");
      return player;
    });
    loaded.catch((error) => (place.textContent = `The player could not be loaded: ${error.message}`));

    const show = (output) => {
      const clips = output?.a4d_clips;
      if (!clips?.length) return;
      const urls = clips.map((file) => api.apiURL(`/view?${new URLSearchParams(file)}`));
      if (urls.join() === shown) return;
      shown = urls.join();
      loaded.then((ready) => ready?.load(urls, { labels: labels(node), filmed: output.a4d_filmed?.[0] }));
    };
    const { onExecuted, onConfigure, onRemoved } = node;
    node.onExecuted = function (output) {
      onExecuted?.apply(this, arguments);
      show(output);
    };
    // A workflow loaded or switched to brings its own view.
    node.onConfigure = function () {
      onConfigure?.apply(this, arguments);
      loaded.then((ready) => {
        ready?.setView(parsed(view.value));
        show(app.nodeOutputs?.[node.id]);
      });
    };
    node.onRemoved = function () {
      onRemoved?.apply(this, arguments);
      removed = true;
      player?.dispose();
    };
    resets.set(node, () => {
      view.value = "";
      player?.reset();
    });
  },
});
