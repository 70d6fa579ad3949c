"""For all tests: how long an example takes says something about the machine, not about the code."""

from hypothesis import settings

settings.register_profile("rondo", deadline=None)
settings.load_profile("rondo")
