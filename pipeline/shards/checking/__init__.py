"""What is in a set: verified against its manifest, proved to be without somebody, shown on a page."""
