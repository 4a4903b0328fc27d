"""Are these hosts fit to train on? Asked before a run, answered with what to do."""
