"""A run's folder: its layout and file names, its record, its checkpoints and its metrics log. Every file is whole
or absent.
"""
