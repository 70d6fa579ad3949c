"""The judging stage of a run, and the commands that judge what is there already."""
