"""What is written: photographs as a source of shards, as identity folders, and their data card."""
