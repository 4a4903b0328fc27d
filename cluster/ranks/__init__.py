"""The ranks of a run: their places, how they meet, what they say to each other, and how a silent one is noticed."""
