"""Pages that are made from the code are what the code says today."""

import json
import re

import pytest

from scripts import config_docs, metrics_docs, objective_docs, performance_docs
from tests.documents import ROOT


@pytest.mark.parametrize(
    "page", [config_docs, metrics_docs, objective_docs, performance_docs], ids=lambda page: page.__name__
)
def test_generated_page_is_current(page):
    assert page.FILE.read_text(encoding="utf-8") == page.render(), f"run: python -m {page.__name__}"


def test_a_result_without_a_section_is_listed(tmp_path):
    found = json.loads((performance_docs.RESULTS / "reference.json").read_text(encoding="utf-8"))
    (tmp_path / "sweep.json").write_text(json.dumps({"machine": found["machine"]}), encoding="utf-8")
    page = performance_docs.render(tmp_path)
    assert "`python -m benchmarks.sweep`" in page
    assert "results/sweep.json" in page
    assert "## The quickstart" not in page


def test_recipes_are_about_every_configuration_that_ships():
    page = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
    assert {p.name for p in (ROOT / "configs").glob("*.yaml")} == set(re.findall(r"`(\w+\.yaml)`", page))
