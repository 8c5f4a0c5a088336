"""Time and memory that convert.py takes for the weights of a whole model.

    python benchmarks/conversion.py [CONFIG ...]

For each configuration (by default configs/ade20k.py:r50 and configs/ade20k.py:swin_l) it makes a .pth file of random
weights with the official names, and converts it. It reports the peak of the resident memory, with and without the
memory that importing the same modules takes. The peak counts pages of the mapped file, which the system can drop.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]

# A process's peak includes its parent's memory at the start, so this process imports little; others do the work.
MAKE_WEIGHTS = """
import sys
import jax, jax.numpy as jnp, torch
from flax import traverse_util
from fasseg_jax.models.fasseg import build_model
from fasseg_jax.config import load_config
from fasseg_jax.weights.names.official import official_rules

config = load_config(sys.argv[1])
model = build_model(config.model)
rules = official_rules(config.model.backbone.kind)
shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3))))
state_dict = {}
for tree in shapes.values():
    for path, leaf in traverse_util.flatten_dict(tree, sep="/").items():
        rule, name = next((rule, name) for rule in rules if (name := rule.name_of(path)))
        axes = rule.axes or tuple(range(leaf.ndim))
        state_dict[name] = torch.randn([leaf.shape[axes.index(i)] for i in range(leaf.ndim)])
torch.save({"model": state_dict}, sys.argv[2])
"""


def measure(*arguments: str) -> tuple[float, int]:
    """Run Python in another process; returns its seconds and the peak of its resident memory in bytes."""
    begin = time.perf_counter()
    process = subprocess.Popen([sys.executable, *arguments], cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise RuntimeError(f"python {arguments[0]} failed")
    return time.perf_counter() - begin, usage.ru_maxrss * 1024  # Linux counts in KiB


def main(configs: list[str]) -> None:
    """Print one line for each configuration."""
    import_seconds, import_bytes = measure("-c", "import fasseg_jax.weights.convert, torch")
    print(f"only imports: {import_seconds:.1f} s, {import_bytes / 1e6:.0f} MB")
    for config in configs:
        with tempfile.TemporaryDirectory() as folder:
            weights = Path(folder) / "weights.pth"
            measure("-c", MAKE_WEIGHTS, config, str(weights))
            size = weights.stat().st_size
            command = ("convert.py", "--config", config, "--weights", str(weights), "--output", f"{folder}/checkpoint")
            seconds, peak = measure(*command)
        growth = peak - import_bytes
        print(
            f"{config}: file {size / 1e6:.0f} MB, {seconds:.1f} s with imports; "
            f"peak {peak / 1e6:.0f} MB ({peak / size:.1f}x the file), without imports {growth / 1e6:.0f} MB "
            f"({growth / size:.1f}x)"
        )


if __name__ == "__main__":
    main(sys.argv[1:] or ["configs/ade20k.py:r50", "configs/ade20k.py:swin_l"])
