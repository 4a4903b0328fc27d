"""Object stores and other machines: whole sets to and from any URL that fsspec knows."""
