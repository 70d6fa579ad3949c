"""What is written about the code is what the code says."""

from scripts.objective_docs import FILE, render


def test_the_page_of_objectives_is_current():
    assert FILE.read_text(encoding="utf-8") == render(), "run: python -m scripts.objective_docs"
