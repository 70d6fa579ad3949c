"""Pages that are made from the code are what the code says today."""

import pytest

from scripts import config_docs, metrics_docs, objective_docs


@pytest.mark.parametrize("page", [config_docs, metrics_docs, objective_docs], ids=lambda page: page.__name__)
def test_generated_page_is_current(page):
    assert page.FILE.read_text(encoding="utf-8") == page.render(), f"run: python -m {page.__name__}"
