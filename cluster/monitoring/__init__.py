"""What watches a run: Prometheus' configuration, alerts, and the panels that dashboards are made of."""
