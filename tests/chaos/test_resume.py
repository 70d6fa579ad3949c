"""A run that was stopped goes on, on another cluster, and ends where an uninterrupted one does."""

import pytest

from tests.integration.conftest import losses, mlflow, pairs, shared_memory_of, submit


def test_a_stopped_run_goes_on_as_a_job_and_ends_where_the_whole_run_did(finished, stopped, overrides, head):
    _, before = mlflow(stopped.directory)
    submit(head, *overrides("stopped"), "--resume=auto")
    assert pairs(stopped.directory) == pairs(finished.directory)
    assert losses(stopped.directory) == pytest.approx(losses(finished.directory), abs=1e-6)
    client, after = mlflow(stopped.directory)
    assert (after.info.run_id, after.info.status) == (before.info.run_id, "FINISHED")
    assert [m.step for m in client.get_metric_history(after.info.run_id, "loss")] == [1, 2, 3]
    assert shared_memory_of(stopped.directory) == []
