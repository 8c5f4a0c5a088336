"""Ends a training when mIoU has stopped rising."""

from ml_collections import ConfigDict

__all__ = ["EarlyStopping"]


class EarlyStopping:
    """Remembers the best evaluation, and says when to stop.

    Attributes:
      best_step: the step of the best evaluation; 0 before the first.
      best: its mean IoU.
    """

    def __init__(self, settings: ConfigDict, best: tuple[int, float] | None = None):
        """`settings` is `config.train`; `best` is the best evaluation of earlier runs, (step, mean IoU)."""
        self._steps = settings.patience * settings.evaluate_every
        self.best_step, self.best = best or (0, float("-inf"))

    def add(self, step: int, mean_iou: float | None) -> None:
        """Take note of an evaluation; None means that there was nothing to evaluate."""
        if mean_iou is not None and mean_iou > self.best:
            self.best_step, self.best = step, mean_iou

    def exhausted(self, step: int) -> bool:
        """Whether `config.train.patience` evaluations after the best one have brought no better mean IoU."""
        return self._steps > 0 and step - self.best_step >= self._steps
