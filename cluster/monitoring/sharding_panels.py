"""What is worth looking at while faces become shards, as data: one more dashboard, of `stages/shard.py`'s metrics.

Each part of a set that is made in parts serves its own endpoint: ``rank`` is the part.
"""

from __future__ import annotations

from cluster.monitoring.panels import Panel

_DONE = 'spherescale_sharded_samples_total{job="$job"}'
_ALL = 'max(spherescale_sharding_samples{job="$job"})'
_PART = "part {{rank}} on {{host}}"

SHARDING = (
    Panel(
        "Done", "Share of the set's samples, over the parts that run.", ((f"sum({_DONE}) / {_ALL}", "done"),), "share"
    ),
    Panel(
        "Time left",
        "At the mean pace of the parts that run, were there no others.",
        (
            (
                f'({_ALL} - sum({_DONE})) / sum({_DONE} / spherescale_elapsed_seconds{{job="$job"}})',
                "left",
            ),
        ),
        "seconds",
    ),
    Panel("Samples a second", "Counted as each tar is finished.", ((f"rate({_DONE}[$window])", _PART),)),
    Panel(
        "Bytes a second",
        "Of finished tars.",
        (('rate(spherescale_sharded_bytes_total{job="$job"}[$window])', _PART),),
        "bytes",
    ),
    Panel(
        "Set aside",
        "Share of the samples that could not be used. Above a hundredth: see the alert SamplesSetAside.",
        ((f'sum(spherescale_set_aside_samples_total{{job="$job"}}) / sum({_DONE})', "set aside"),),
        "share",
    ),
)
