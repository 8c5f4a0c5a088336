"""A segmenter without a network, and a running server, for tests of the latter."""

import contextlib
import threading

import numpy as np

from fasseg_jax.data.classes import load_classes
from fasseg_jax.serving.limits import Limits
from fasseg_jax.serving.server import PhotoServer


class Brightness:
    """The class of a pixel is its brightness. It waits while `open` is not set, and notes the batches."""

    classes = load_classes("cityscapes")
    input_shapes = frozenset()

    def __init__(self, batches_pay=False):
        self.batches_pay = batches_pay
        self.open = threading.Event()
        self.open.set()
        self.entered = threading.Semaphore(0)
        self.batches = []  # (shape, number of photos, batch_size)

    def padded_shapes(self, image):
        return (image.shape[:2],)

    def segment_all(self, photos, batch_size=1):
        photos = list(photos)
        self.batches.append((photos[0][1].shape[:2], len(photos), batch_size))
        self.entered.release()
        assert self.open.wait(30)
        for key, image in photos:
            yield key, self.labels(image)

    def labels(self, image):
        return (image[..., 0] // 16).astype(np.uint8)


@contextlib.contextmanager
def serve(segmenter=None, **limits):
    """The server in a thread; without a segmenter, with `Brightness`."""
    with PhotoServer(segmenter or Brightness(), limits=Limits(**limits)) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
