"""What ``rondo verify`` checks, one subject a module; ``pipelines.verify`` puts them together."""
