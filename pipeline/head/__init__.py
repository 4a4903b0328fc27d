"""The classifier, split over ranks: one loss, exact gradients, and the logits of all classes are never held."""
