"""Videos that tests write, and a stand-in for the network that segments them."""

from fractions import Fraction

import av
import numpy as np

from fasseg_jax.data.classes import load_classes
from fasseg_jax.inference.segmenter import Segmenter
from fasseg_jax.inference.video import VideoReader

QUALITY = {"crf": "10", "g": "5"}


def write(path, images, times=None, codec="libx264", pixels="yuv420p", rate=25, aspect=None, display=None):
    """Write a video; `times` in milliseconds, by default even; `display(stream)` sets how it is turned."""
    with av.open(f"file:{path}", "w", options={"movflags": "faststart"} if path.suffix == ".mp4" else {}) as container:
        stream = container.add_stream(codec, rate=rate, options=QUALITY if codec == "libx264" else {})
        stream.height, stream.width = images[0].shape[:2]
        stream.pix_fmt = pixels
        stream.codec_context.time_base = Fraction(1, 1000) if times or codec == "libx264" else Fraction(1, rate)
        if aspect is not None:
            stream.codec_context.sample_aspect_ratio = aspect
        if display is not None:
            display(stream)
        for index, image in enumerate(images):
            frame = av.VideoFrame.from_ndarray(image, "rgb24")
            frame.time_base = stream.codec_context.time_base
            frame.pts = times[index] if times else round(index / (rate * frame.time_base))
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return str(path)


def write_lossless(path, images, display=None):
    """Write a .mov whose frames are read back as they are."""
    return write(path, images, codec="png", pixels="rgb24", display=display)


def read(path):
    with VideoReader(str(path)) as reader:
        return list(reader), reader


class Thresholds(Segmenter):
    """In place of a network: the class of a pixel is its red value by 14. Results come in pairs, the later first."""

    classes = load_classes("cityscapes")
    sizes = None

    def __init__(self):
        pass

    def label(self, image):
        return (image[..., 0] // 14).astype(np.uint8)

    def segment_all(self, photos, batch_size=1):
        self.sizes = set()
        held = []
        for key, image in photos:
            self.sizes.add(image.shape)
            held.append((key, self.label(image)))
            if len(held) == 2:
                yield from held[::-1]
                held = []
        yield from held
