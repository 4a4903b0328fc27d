"""Checks before a run whether the hosts are fit to train on, and advises how to mend what is not."""
