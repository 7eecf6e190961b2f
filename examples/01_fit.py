"""A driving video and a 3D model to a moving object, its pictures and files: python 01_fit.py OUT"""

import sys
from pathlib import Path

import anchor4d as a4d
from anchor4d.core.runs.sample import write_sample  # the bundled sample stands for your own files

out = Path(sys.argv[1] if len(sys.argv) > 1 else "example-out")
sample = write_sample(out / "sample", frames=4, size=64)

video = a4d.load_video(sample / "front", resolution=64)  # frames (T, S, S, 3), masks (T, S, S), one crop
model = a4d.load_object(sample / "mesh.glb")
done = a4d.fit(video, model, method="pla4d", preset="draft", prior="none", yaw=0.0)

pictures = a4d.render(done.scene, [0, 90], size=64)  # (2, T, H, W, 4), straight alpha
a4d.export(done.scene, out / "object.glb")
done.scene.save(out / "scene.safetensors")
print(f"{len(done.scene.gaussians)} Gaussians, {tuple(pictures.shape)} pictures, {sorted(p.name for p in out.iterdir())}")
