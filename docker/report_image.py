"""The layers of an image in bytes, and what must hold of its configuration; reads `buildah inspect` on standard input.

python report_image.py NAME .../layers.json
"""

import json
import sys
from pathlib import Path

name, layers_file = sys.argv[1:]
image = json.load(sys.stdin)
config, history = image["OCIv1"]["config"], image["OCIv1"]["history"]
sizes = {layer["diff-digest"]: layer["diff-size"] for layer in json.loads(Path(layers_file).read_text())}
made = [step.get("created_by", "") for step in history if not step.get("empty_layer")]
diffs = image["OCIv1"]["rootfs"]["diff_ids"]
assert len(made) == len(diffs)
print(f"{name}: {len(diffs)} layers, {sum(sizes[diff] for diff in diffs) / 1e9:.2f} GB uncompressed")
for step, diff in zip(made, diffs, strict=True):
    words = [
        word for word in step.split() if not word.startswith(("--mount=", "/bin/", "|", "#(nop)")) and word != "-c"
    ]
    print(f"  {sizes[diff] / 1e6:9.1f} MB  {' '.join(words)[:90]}")

user = config.get("User", "")
assert user and user.split(":")[0].isdigit() and not user.startswith("0"), f"{name} runs as {user or 'root'}"
assert image["Docker"]["config"].get("Healthcheck"), f"{name} has no health check"
secret = [entry for entry in config["Env"] if any(word in entry.upper() for word in ("TOKEN", "SECRET", "PASSWORD"))]
assert not secret, f"{name} holds secrets in its environment: {secret}"
