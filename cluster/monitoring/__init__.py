"""Monitoring of a run: Prometheus' configuration, alerts with runbooks, panels, dashboards and a live page."""
