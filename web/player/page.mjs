// Starts the player of a page that core/io/html.py wrote.

import { keepBookmark } from "./bookmark.mjs";
import { answer } from "./messages.mjs";
import { Player } from "./player.mjs";

/* global anchor4d */
const { clips, labels, name, view } = anchor4d.settings;
const sources = Array.from({ length: clips }, (_, index) => anchor4d.bytes(index));
const player = new Player(document.getElementById("player"), { sources, labels, name, view });
document.addEventListener("keydown", (event) => {
  if (event.target === document.body) player.key(event);
});
keepBookmark(player);
if (window.parent !== window) answer(player);
window.player = player; // in place of the element of this id
