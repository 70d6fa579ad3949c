"""Moved: see preference.reports."""

from preference.reports import *  # noqa: F403
