"""Photographs to aligned crops."""
