"""Who is compared with whom: the published protocols, read from their files and checked."""
