"""From a network and images to features."""
