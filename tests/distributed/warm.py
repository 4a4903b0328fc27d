"""What every rank imports and DeepSpeed finds out at a start; the server from which ranks are forked does it once."""

# ruff: noqa: F401

import deepspeed.ops

import pipeline.training.evaluator
import pipeline.training.loop
import pipeline.training.observed
import pipeline.training.observers
import stages.train

_ = deepspeed.ops.__compatible_ops__  # which asks a compiler, a third of a second
