"""What ``rondo verify`` checks, one subject a module; ``pipelines.ledger.verify`` puts them together."""
