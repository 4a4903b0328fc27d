"""The head's inner loop: from features and rows to log-sum-exp and gradients, a block of classes at a time."""
