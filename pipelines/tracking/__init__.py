"""Tracking: what a run measures goes into a journal in its directory, and from there to MLflow.

    Tracker ──> events (journal) ──> outbox ──> senders ──> MLflow
                       └──> history ──> figures, `rondo report`, `rondo compare`

This package alone imports mlflow, and only when it is used. Once a run is in MLflow, MLflow may fail without stopping
it, for as long as it likes: what could not be delivered waits in the journal for the next attempt, across restarts.
"""

from pipelines.look.dictionary import METRICS as METRICS
from pipelines.tracking.client import TrackingError as TrackingError
from pipelines.tracking.later import log_diagnosis as log_diagnosis
from pipelines.tracking.later import send_waiting as send_waiting
from pipelines.tracking.tracker import Tracker as Tracker
