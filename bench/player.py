"""The player in a headless Chromium: python -m anchor4d.bench.player [--gaussians N] [--frames T] [--size PX].

Script time of a drawn frame on the page's own thread (processor time: what else the machine does is not in it), the worker's
sort and the age of its orders, the stream's size, errors and loading times. Needs playwright and a Chromium on the path;
without a graphics card the browser draws in software, so the display's rate is not measured.
"""

from __future__ import annotations

import argparse
import http.server
import io
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..core.files import InputError
from ..core.io.splats import encode_splats
from ..core.io.stream import write_stream
from ..core.packages import problems
from .moving import moving_sample

WEB = Path(__file__).parents[1] / "web"
FLAGS = ["--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--ignore-gpu-blocklist"]
PAGE = b"<!doctype html><meta charset=utf-8><link rel=icon href=data:,><body style='margin:0'>"

#: Draws while time runs and the camera circles, so that every frame wants another order.
MEASURE = """async ({ size, seconds, warm, frames }) => {
  const { openStream } = await import("/player/stream.mjs");
  const { Renderer } = await import("/player/renderer.mjs");
  const renderer = new Renderer(document.body.appendChild(document.createElement("canvas")));
  renderer.resize(size, size);
  const shot = {
    camera: { target: [0, 0, 0], distance: 2, azimuth: 0, elevation: 10, fovy: 40 }, time: [0, 0], background: [1, 1, 1, 1],
  };
  const figures = { arriving: 0 };
  const load = (name) => new Promise((resolve, reject) => {
    const begin = performance.now();
    openStream(`/data/${name}`, {
      header: (clip) => renderer.setClip(0, clip),
      frame: (index) => {
        const now = performance.now();
        renderer.frameArrived(0, index);
        figures.arriving += (performance.now() - now) / frames;
        if (index) return;
        figures.first = now - begin;
        renderer.drawSorted(shot).then(() => { figures.firstDrawn = performance.now() - begin; });
      },
      done: () => {
        figures.loaded = performance.now() - begin;
        resolve();
      },
      error: reject,
    });
  });
  const play = (until) => new Promise((resolve) => {
    const found = { script: [], sorts: [] };
    const tick = () => {
      if (until(found.script.length)) return resolve(found);
      shot.camera.azimuth += 1.3;
      shot.time[0] += 0.37;
      const now = performance.now();
      if (renderer.draw(shot)) found.script.push(performance.now() - now);
      found.sorts.push(renderer.stats.sortMs);
      requestAnimationFrame(tick);
    };
    requestAnimationFrame(tick);
  });
  const bytes = await (await fetch("/data/clip.a4d")).arrayBuffer(), begin = performance.now();
  await new Promise((done, error) => openStream(bytes, { done, error }));
  figures.decoding = (performance.now() - begin) / frames;
  await load("small.a4d");
  await play((drawn) => drawn >= warm);  // the script is compiled by now, as it is after seconds of playing
  figures.arriving = 0;
  await load("clip.a4d");
  await renderer.drawSorted(shot);
  Object.assign(renderer.stats, { held: 0, maxOrderAge: 0, maxSortMs: 0 });
  window.measure = async () => {
    const end = performance.now() + seconds * 1000;
    return { ...await play(() => performance.now() > end), stats: { ...renderer.stats } };
  };
  window.thumbnails = async () => {
    const begin = performance.now();
    for (let frame = 0; frame < 8; frame++) await renderer.thumbnail({ ...shot, time: [frame * 4 % frames, 0] }, 128, 72);
    return (performance.now() - begin) / 8;
  };
  window.reading = async (name) => {
    const { openSource } = await import("/player/files.mjs"), file = await (await fetch(`/data/${name}`)).blob();
    const begin = performance.now();
    await openSource(new File([file], name));
    return performance.now() - begin;
  };
  return figures;
}"""


#: Splat files that are read in the page, by name: the format's name comes first.
FILES: dict[str, dict[str, Any]] = {"ply": {}, "spz": {"version": 3}, "spz4": {"version": 4}, "sog": {}}


@contextmanager
def serve(files: dict[str, bytes | Callable[[], Iterator[bytes]]]) -> Iterator[str]:
    """A server of the player's modules under /player/ and of files under /data/, which may be given chunk by chunk; its URL."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = self.path.split("?")[0]
            found: bytes | Callable[[], Iterator[bytes]] | None = PAGE if path == "/" else None
            kind = "text/html"
            if path.startswith("/data/"):
                found, kind = files.get(path[6:]), "application/octet-stream"
            elif path.startswith("/player/") and ".." not in path and (WEB / path[1:]).is_file():
                found = (WEB / path[1:]).read_bytes()
                kind = "text/html" if path.endswith(".html") else "text/javascript"
            self.send_response(404 if found is None else 200)
            self.send_header("Content-Type", kind)
            self.send_header("Cache-Control", "no-store")
            # Isolated pages have finer clocks.
            self.send_header("Cross-Origin-Opener-Policy", "same-origin")
            self.send_header("Cross-Origin-Embedder-Policy", "require-corp")
            self.end_headers()
            try:
                for chunk in [found or b""] if not callable(found) else found():
                    self.wfile.write(chunk)
                    self.wfile.flush()
            except ConnectionError:
                pass

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def chromium() -> Iterator[Any]:
    """A headless browser that draws in software.

    Raises:
        InputError: where playwright or a Chromium is missing.
    """
    if lacking := problems("playwright"):
        raise InputError(f"bench.player: {lacking}")
    from playwright.sync_api import sync_playwright

    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
    if found is None:
        raise InputError("no Chromium on the path: install chromium")
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=found, headless=True, args=FLAGS)
        try:
            yield browser
        finally:
            browser.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gaussians", type=int, default=100_000)
    parser.add_argument("--frames", type=int, default=32)
    parser.add_argument("--size", type=int, default=128, help="side of the canvas in pixels; software drawing is slow")
    parser.add_argument("--seconds", type=float, default=20)
    arguments = parser.parse_args()
    count, frames = arguments.gaussians, arguments.frames

    sys.stdout.write(f"{count} Gaussians x {frames} frames, canvas {arguments.size} x {arguments.size}\n")
    small, data = io.BytesIO(), b""
    write_stream(small, moving_sample(300, 4, changing="shape"))
    for changing in ("motion", "shape"):
        scene = moving_sample(count, frames, changing=changing)
        file, begin = io.BytesIO(), time.perf_counter()
        header = write_stream(file, scene)
        data = file.getvalue()
        record = sum(words * bits // 8 for _, words, bits in header["layout"])
        sys.stdout.write(
            f"{changing:7s} written in {time.perf_counter() - begin:.1f} s, {len(data) / 1e6:.1f} MB, "
            f"{len(data) / count / frames:.2f} bytes a Gaussian and frame ({record} before deflate), largest errors: "
            + ", ".join(f"{name} {value:g}" for name, value in header["errors"].items())
            + "\n"
        )
    still = {f"{name}.{name[:3]}": encode_splats(scene.gaussians, name[:3], **options) for name, options in FILES.items()}
    with serve({"clip.a4d": data, "small.a4d": small.getvalue(), **still}) as url, chromium() as browser:
        page = browser.new_page()
        page.goto(url)
        wanted = {"size": arguments.size, "seconds": arguments.seconds, "warm": 300, "frames": frames}
        found = page.evaluate(MEASURE, wanted)
        meter = page.context.new_cdp_session(page)
        meter.send("Performance.enable", {"timeDomain": "threadTicks"})

        def script_seconds() -> float:
            return next(m["value"] for m in meter.send("Performance.getMetrics")["metrics"] if m["name"] == "ScriptDuration")

        before = script_seconds()
        found |= page.evaluate("measure()")
        busy = 1e3 * (script_seconds() - before) / len(found["script"])
        before = script_seconds()
        aside = page.evaluate("thumbnails()"), 1e3 * (script_seconds() - before) / 8
        read = {name: page.evaluate("name => reading(name)", name) for name in still}
    script, stats = sorted(found["script"]), found["stats"]
    sys.stdout.write(
        f"loading  first frame there after {found['first']:.0f} ms, drawn after {found['firstDrawn']:.0f} ms, all after "
        f"{found['loaded']:.0f} ms; a frame takes {found['decoding']:.1f} ms to decode, {found['arriving']:.1f} ms to upload\n"
        f"drawing  {len(script)} frames in {arguments.seconds:g} s, script a frame: {busy:.3f} ms of processor time; draw() by "
        f"the clock: median {script[len(script) // 2]:.3f} ms, 95 % below {script[int(len(script) * 0.95)]:.3f} ms\n"
        f"sorting  in the worker: median {sorted(found['sorts'])[len(found['sorts']) // 2]:.2f} ms, longest "
        f"{stats['maxSortMs']:.2f} ms; oldest order drawn {stats['maxOrderAge']} frames, {stats['held']} frames held\n"
        f"aside    a thumbnail of 128 x 72: {aside[0]:.0f} ms by the clock, {aside[1]:.2f} ms of script\n"
        f"files    {count} Gaussians, until all is packed, by the clock: "
        + ", ".join(f"{name.partition('.')[0]} {clock:.0f} ms" for name, clock in read.items())
        + "\n"
    )


if __name__ == "__main__":
    main()
