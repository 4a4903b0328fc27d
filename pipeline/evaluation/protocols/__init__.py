"""Protocols: files that list the images to compare, read and checked."""
