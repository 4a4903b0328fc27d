"""The panels of sharding, as data: one more dashboard, of the metrics of `stages/shard.py`.

If a set is made in parts, each part serves an endpoint of its own: ``rank`` is the number of the part.
"""

from __future__ import annotations

from cluster.monitoring.panels import Panel

_DONE = 'spherescale_sharded_samples_total{job="$job"}'
_ALL = 'max(spherescale_samples_to_shard{job="$job"})'
_PART = "part {{rank}} on {{host}}"

SHARDING = (
    Panel(
        "Done",
        "Share of the set's samples, over the parts that are running.",
        ((f"sum({_DONE}) / {_ALL}", "done"),),
        "share",
    ),
    Panel(
        "Time left",
        "At the mean pace so far of the parts that are running.",
        (
            (
                f'({_ALL} - sum({_DONE})) / sum({_DONE} / spherescale_elapsed_seconds{{job="$job"}})',
                "left",
            ),
        ),
        "seconds",
    ),
    Panel("Samples per second", "Counted when a tar is finished.", ((f"rate({_DONE}[$window])", _PART),)),
    Panel(
        "Bytes per second",
        "Counted when a tar is finished.",
        (('rate(spherescale_sharded_bytes_total{job="$job"}[$window])', _PART),),
        "bytes",
    ),
    Panel(
        "Set aside",
        "Share of the samples that could not be used. Above one in a hundred: see SamplesSetAside.",
        ((f'sum(spherescale_set_aside_samples_total{{job="$job"}}) / sum({_DONE})', "set aside"),),
        "share",
    ),
)
