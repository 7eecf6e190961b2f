// The player's looks. Colours come from the host's theme where there is one, else from the system's light or dark.

export const STYLE = /* css */ `
:host {
  display: block; position: relative; width: 100%; height: 100%; min-width: 0; min-height: 0; contain: layout style;
  --paper: var(--comfy-menu-bg, #f4f4f5); --ink: var(--fg-color, #1d1d20); --edge: var(--border-color, #c9c9cf);
  --field: var(--comfy-input-bg, #ffffff); --accent: #3b82f6; --check-a: #ffffff; --check-b: #d9d9dd;
  --faint: color-mix(in srgb, var(--ink) 16%, transparent); --loading: color-mix(in srgb, var(--ink) 38%, transparent); --dim: color-mix(in srgb, var(--ink) 72%, var(--paper));
  color: var(--ink); font: 12px/1.35 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; -webkit-text-size-adjust: 100%;
}
:host([data-dark]) {
  --paper: var(--comfy-menu-bg, #202024); --ink: var(--fg-color, #ececf0); --edge: var(--border-color, #4a4a52);
  --field: var(--comfy-input-bg, #2b2b30); --accent: #60a5fa; --check-a: #3a3a3f; --check-b: #2a2a2e;
}
:host([hidden]), [hidden] { display: none !important; }
* { box-sizing: border-box; }
.root { position: absolute; inset: 0; display: flex; flex-direction: column; overflow: hidden; border-radius: 6px; background: var(--paper); outline: none; user-select: none; -webkit-user-select: none; }
.root:focus-visible::after { content: ""; position: absolute; inset: 0; z-index: 2; border: 2px solid var(--accent); border-radius: inherit; pointer-events: none; }
.root.over::after { content: "Drop to play"; position: absolute; inset: 4px; z-index: 5; display: grid; place-items: center; border: 2px dashed var(--accent); border-radius: 6px; background: rgb(0 0 0 / 45%); color: #fff; font-size: 15px; pointer-events: none; }
.stage { position: relative; flex: 1 1 0; min-height: 0; display: flex; flex-direction: row; }
.stage.tall { flex-direction: column; }
.film, .view { position: relative; flex: 1 1 0; min-width: 0; min-height: 0; overflow: hidden; }
.film { background: var(--field); border: 0 solid var(--edge); border-right-width: 1px; }
.stage.tall .film { border-width: 0 0 1px; }
.film canvas { position: absolute; inset: 0; width: 100%; height: 100%; object-fit: contain; }
.view { cursor: grab; touch-action: none; }
.view:active { cursor: grabbing; }
.view.checker { background: repeating-conic-gradient(var(--check-a) 0 25%, var(--check-b) 0 50%) 0 0 / 20px 20px; }
.marks { position: absolute; inset: 0; width: 100%; height: 100%; pointer-events: none; overflow: hidden; }
.marks .trail { fill: none; stroke-width: 2; stroke-linejoin: round; opacity: 0.85; }
.marks circle { stroke: #fff; stroke-width: 1.5; }
.marks line { stroke: #fff; stroke-width: 1.5; stroke-dasharray: 4 3; paint-order: stroke; filter: drop-shadow(0 0 1px #000); }
.marks text { fill: #fff; stroke: #000; stroke-width: 3; paint-order: stroke; font-size: 12px; text-anchor: middle; }
.view canvas { position: absolute; inset: 0; width: 100%; height: 100%; display: block; }
.tag { position: absolute; top: 6px; max-width: calc(50% - 12px); padding: 1px 6px; border-radius: 4px; background: rgb(0 0 0 / 62%); color: #fff; font-size: 11px; overflow: hidden; text-overflow: ellipsis; white-space: nowrap; pointer-events: none; }
.tag.left { left: 6px; } .tag.right { right: 6px; }
.split { position: absolute; top: 0; bottom: 0; width: 24px; margin-left: -12px; cursor: ew-resize; touch-action: none; outline: none; }
.split::before { content: ""; position: absolute; left: 11px; width: 2px; top: 0; bottom: 0; background: #fff; box-shadow: 0 0 0 1px rgb(0 0 0 / 45%); }
.split::after { content: "\\2039\\2009\\203A"; position: absolute; left: 0; top: calc(50% - 12px); width: 24px; height: 24px; border-radius: 12px; background: #fff; color: #222; font: 600 15px/21px system-ui, sans-serif; text-align: center; box-shadow: 0 0 0 1px rgb(0 0 0 / 45%); }
.split:focus-visible::after { box-shadow: 0 0 0 3px var(--accent); }
.note { position: absolute; left: 50%; top: 50%; transform: translate(-50%, -50%); max-width: calc(100% - 24px); max-height: calc(100% - 12px); overflow: auto; padding: 8px 12px; border-radius: 6px; background: rgb(0 0 0 / 72%); color: #fff; text-align: center; user-select: text; -webkit-user-select: text; overflow-wrap: anywhere; }
.note.error { background: #8f1d1d; text-align: left; }
.note.small { top: auto; bottom: 8px; transform: translateX(-50%); padding: 3px 10px; font-size: 11px; white-space: nowrap; overflow: hidden; text-overflow: ellipsis; user-select: none; }
.note button { margin: 6px 0 0; padding: 3px 10px; border: 1px solid rgb(255 255 255 / 60%); border-radius: 4px; background: transparent; color: inherit; font: inherit; cursor: pointer; }
.bar { position: relative; flex: none; padding: 3px 6px 4px; border-top: 1px solid var(--edge); }
.time-line { display: block; width: 100%; height: 16px; margin: 0; padding: 0; background: transparent; -webkit-appearance: none; appearance: none; cursor: pointer; touch-action: none; outline-offset: 1px; --played: 0%; --loaded: 0%; }
.time-line::-webkit-slider-runnable-track { height: 4px; border-radius: 2px; background: linear-gradient(var(--accent), var(--accent)) 0 0 / var(--played) 100% no-repeat, linear-gradient(var(--loading), var(--loading)) 0 0 / var(--loaded) 100% no-repeat, var(--faint); }
.time-line::-moz-range-track { height: 4px; border-radius: 2px; background: linear-gradient(var(--accent), var(--accent)) 0 0 / var(--played) 100% no-repeat, linear-gradient(var(--loading), var(--loading)) 0 0 / var(--loaded) 100% no-repeat, var(--faint); }
.time-line::-webkit-slider-thumb { -webkit-appearance: none; appearance: none; width: 12px; height: 12px; margin-top: -4px; border-radius: 6px; border: 0; background: var(--accent); }
.time-line::-moz-range-thumb { width: 12px; height: 12px; border-radius: 6px; border: 0; background: var(--accent); }
.time-line:disabled { opacity: 0.45; cursor: default; }
.thumbnail { position: absolute; bottom: calc(100% + 2px); z-index: 2; display: flex; flex-direction: column; padding: 3px; border: 1px solid var(--edge); border-radius: 6px; background: var(--paper); box-shadow: 0 2px 8px rgb(0 0 0 / 30%); pointer-events: none; }
.thumbnail canvas { height: 72px; border-radius: 3px; background: var(--field); }
.thumbnail span { margin-top: 1px; font-size: 11px; text-align: center; white-space: pre; font-variant-numeric: tabular-nums; color: var(--dim); }
.row { display: flex; align-items: center; gap: 1px; height: 28px; }
.row .space { flex: 1 1 0; min-width: 0; }
.time { padding: 0 6px; font-variant-numeric: tabular-nums; white-space: nowrap; overflow: hidden; }
.time small { white-space: pre; color: var(--dim); font-size: 11px; }
button.tool { flex: none; display: inline-flex; align-items: center; justify-content: center; gap: 6px; min-width: 28px; height: 28px; padding: 0 4px; border: 0; border-radius: 5px; background: transparent; color: var(--ink); font: inherit; font-variant-numeric: tabular-nums; cursor: pointer; }
button.tool:hover, button.tool[aria-expanded="true"] { background: var(--faint); }
button.tool[aria-pressed="true"] { color: var(--accent); }
button:focus-visible, input:focus-visible { outline: 2px solid var(--accent); outline-offset: -1px; }
button:disabled { opacity: 0.4; cursor: default; }
.popup { position: absolute; right: 6px; bottom: 52px; z-index: 3; min-width: 150px; max-width: calc(100% - 12px); max-height: calc(100% - 60px); overflow: auto; padding: 4px; border: 1px solid var(--edge); border-radius: 6px; background: var(--paper); box-shadow: 0 4px 14px rgb(0 0 0 / 35%); overscroll-behavior: contain; }
.popup h2 { margin: 2px 6px 4px; font-size: 11px; font-weight: 600; color: var(--dim); }
.popup button.tool { display: flex; justify-content: flex-start; width: 100%; gap: 8px; padding: 0 8px 0 6px; text-align: left; white-space: nowrap; }
.popup button.tool > .mark { width: 18px; height: 18px; flex: none; }
.popup i { flex: 1 1 8px; }
.popup .swatch.checker { background: repeating-conic-gradient(var(--check-a) 0 25%, var(--check-b) 0 50%) 0 0 / 8px 8px; }
.popup .swatch { width: 16px; height: 16px; margin: 1px; border-radius: 4px; border: 1px solid var(--edge); flex: none; }
.popup label { display: flex; align-items: center; gap: 8px; min-height: 28px; padding: 0 6px; cursor: pointer; }
.popup input[type="color"] { width: 34px; height: 22px; padding: 0; border: 1px solid var(--edge); border-radius: 4px; background: none; cursor: pointer; }
.popup .keys { margin: 0; padding: 0; list-style: none; }
.popup .keys li { display: flex; align-items: center; gap: 2px; }
.popup .keys li button.tool:first-child { flex: 1 1 auto; width: auto; }
.popup .keys li button.tool:last-child { flex: none; width: 28px; padding: 0 5px; }
.popup p { margin: 2px 6px 4px; max-width: 240px; color: var(--dim); }
.help { position: absolute; inset: 0; z-index: 4; overflow: auto; padding: 10px 14px; background: var(--paper); user-select: text; -webkit-user-select: text; }
.help h2 { margin: 0 32px 6px 0; font-size: 13px; }
.help dl { display: grid; grid-template-columns: repeat(auto-fill, minmax(190px, 1fr)); gap: 3px 18px; margin: 0; }
.help dl div { display: flex; gap: 8px; align-items: baseline; }
.help dt { flex: none; min-width: 74px; font-weight: 600; }
.help dd { margin: 0; color: var(--dim); }
.help .tool.close { position: absolute; right: 6px; top: 6px; }
@media (prefers-reduced-motion: no-preference) { .tool { transition: background-color 0.12s; } }
`;
