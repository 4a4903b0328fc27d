"""The classifier, split over ranks: one loss, exact gradients, and the logits of all classes are never held."""

from pipeline.head.head import ShardedHead
from pipeline.head.options import HeadOptions, HeadOutput
from pipeline.head.resplit import of_classes

__all__ = ["HeadOptions", "HeadOutput", "ShardedHead", "of_classes"]
