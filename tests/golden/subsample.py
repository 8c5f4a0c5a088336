"""Makes the arrays of this folder from the complete ones: `python tests/golden/subsample.py COMPLETE_DIR`.

The complete arrays (30 MB) were computed with the official PyTorch programs on a CPU in float32, with the weights of
`synthetic_weights.py`. Here queries, channels and pixels are thinned by the strides below; nothing else changes.
"""

import sys
from pathlib import Path

import numpy as np

CASES = ("faseg_r50_ade20k", "faseg_swin_tiny_ade20k", "faseg_r50_cityscapes", "mask2former_r50_ade20k")
QUERIES = slice(None, None, 4)

# Array of a forward case -> what is kept of it; the others are kept whole.
KEPT = {
    "decoder/pred_logits": np.s_[:, QUERIES],
    "decoder/pred_masks_sub4": np.s_[:, QUERIES],
    "decoder/pred_masks_last": np.s_[QUERIES, ::2, ::2],
    "decoder/attention0": np.s_[QUERIES],
    "decoder/attention1": np.s_[QUERIES],
    "decoder/attention2": np.s_[QUERIES],
    "decoder/query_pos": np.s_[:, QUERIES],
    "pixel_decoder/mask_features": np.s_[::2],
    "pixel_decoder/feature3": np.s_[::2],
    "pixel_decoder/position3": np.s_[::2],
}


def main(complete: Path):
    """Writes NAME.npz for every forward case."""
    for name in CASES:
        arrays = np.load(complete / f"{name}.npz")
        kept = {key: arrays[key][KEPT.get(key, ...)] for key in arrays.files}
        np.savez_compressed(Path(__file__).parent / f"{name}.npz", **kept)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
