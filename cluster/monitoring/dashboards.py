"""Grafana dashboards from the tables of panels, one per group: ``python -m cluster.monitoring.dashboards`` writes all.

The JSON is committed, so that only a change of panels needs ``grafana-foundation-sdk``; a test compares the two.
"""

from __future__ import annotations

from pathlib import Path
from string import ascii_uppercase
from typing import Any

from grafana_foundation_sdk.builders import common, dashboard, heatmap, prometheus, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.common import ScaleDistribution, StackingMode
from grafana_foundation_sdk.models.dashboard import DataSourceRef, VariableRefresh

from cluster.monitoring.panels import PANELS, TITLES, Panel
from cluster.monitoring.sharding_panels import SHARDING

FOLDER = Path(__file__).parent / "grafana"

# By file name: the title, a metric that every run of this kind exports, and the panels.
BOARDS = {group: (TITLES[group], "spherescale_ranks", panels) for group, panels in PANELS.items()}
BOARDS["shards"] = ("Shards", "spherescale_samples_to_shard", SHARDING)

_UNITS = {"seconds": "s", "bytes": "bytes", "share": "percentunit", "": "short"}
_SOURCE = DataSourceRef(type_val="prometheus", uid="$datasource")


def build(group: str) -> str:
    """The dashboard of a group of panels, as JSON."""
    title, run_metric, panels = BOARDS[group]
    board = (
        dashboard.Dashboard(f"spherescale: {title}")
        .uid(f"spherescale-{group}")
        .tags(["spherescale"])
        .refresh("10s")
        .time("now-1h", "now")
        .with_variable(dashboard.DatasourceVariable("datasource").type("prometheus").label("Prometheus"))
        .with_variable(
            dashboard.QueryVariable("job")
            .label("Run")
            .datasource(_SOURCE)
            .query(f"label_values({run_metric}, job)")
            .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
        )
    )
    for panel in panels:
        board = board.with_panel(_chart(panel))
    return JSONEncoder(sort_keys=True, indent=1).encode(board.build()) + "\n"


def _chart(panel: Panel) -> Any:
    # The SDK's builders share these methods, but no common type.
    chart: Any = heatmap.Panel() if panel.kind == "heatmap" else timeseries.Panel()
    if panel.kind == "stack":
        chart.stacking(common.StackingConfig().mode(StackingMode.NORMAL)).fill_opacity(40)
    if panel.logarithmic:
        chart.scale_distribution(common.ScaleDistributionConfig().type(ScaleDistribution.LOG).log(10))
    chart.title(panel.title).description(panel.about).unit(_UNITS[panel.unit]).datasource(_SOURCE).span(12).height(8)
    for letter, (expression, legend) in zip(ascii_uppercase, panel.queries, strict=False):
        query = prometheus.Dataquery().expr(expression.replace("$window", "$__rate_interval")).legend_format(legend)
        chart.with_target(query.ref_id(letter).range())
    return chart


def write_all() -> None:
    """Write every dashboard to `FOLDER`."""
    FOLDER.mkdir(exist_ok=True)
    for group in BOARDS:
        (FOLDER / f"{group}.json").write_text(build(group))


if __name__ == "__main__":
    write_all()
