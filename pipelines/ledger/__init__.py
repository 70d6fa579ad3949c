"""The durable ledger of a run: journals, checkpoints, lock, copies; and what is read from it alone (status, audit)."""
