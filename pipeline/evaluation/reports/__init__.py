"""From results to pages, each one file that needs nothing beside it."""
