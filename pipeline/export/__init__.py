"""A trained backbone for use elsewhere, with what feeds it."""
