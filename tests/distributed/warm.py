"""What every rank imports and DeepSpeed finds out at a start; the server from which ranks are forked does it once."""

# ruff: noqa: F401

import gc

import deepspeed.module_inject.auto_ep_layer
import deepspeed.ops
import deepspeed.runtime.superoffload.superoffload_stage3
import deepspeed.runtime.zero.muon.muon_optimizer  # and with it torch's Inductor: 2.5 s of every rank under ZeRO

import pipeline.training.evaluator
import pipeline.training.loop
import pipeline.training.observed
import pipeline.training.observers
import stages.train

_ = deepspeed.ops.__compatible_ops__  # which asks a compiler, a third of a second
gc.freeze()  # or a rank's every full collection would visit, and so copy, the pages of all of these modules
