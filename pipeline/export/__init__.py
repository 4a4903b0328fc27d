"""A trained backbone for use elsewhere, with a description of its input."""
