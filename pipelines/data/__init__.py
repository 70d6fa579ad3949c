"""Preference data from files and earlier runs: checked, tokenised once, counted.

file ──> spans ──> records ──> preferences / graded responses ──> token ids ──> Items + LoadReport
         (containers)   (records, annotations)                    (encode)      (gather)
run directory ──────────────────────────────────────────────────────────────>  (runs)
"""

from pipelines.data.files import write_pairs
from pipelines.data.gather import Items, split
from pipelines.data.load import load_items, read_items
from pipelines.data.report import Change, LoadReport, Reason, Tally
from pipelines.data.rules import AnnotationFields, DataError, DataRules

__all__ = [
    "AnnotationFields",
    "Change",
    "DataError",
    "DataRules",
    "Items",
    "LoadReport",
    "Reason",
    "Tally",
    "load_items",
    "read_items",
    "split",
    "write_pairs",
]
