"""Stage 1: faces from any source to WebDataset tars, each whole or absent, the same bytes from the same input."""
