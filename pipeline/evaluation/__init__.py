"""Stage 3: judge a network by the papers' protocols, with intervals over people."""
