"""Take the README's picture of the annotation page anew: ``python -m tests.browser.screenshot``."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from playwright.sync_api import expect, sync_playwright

from pipelines.annotate.items import AnnotationItem, Shown, Task
from pipelines.annotate.people import new_code
from pipelines.annotate.serving import address, link, listen
from pipelines.annotate.store import Store, sqlite_url
from preference.types import Message
from tests.browser.conftest import CHROMIUM, FLAGS, ServerThread, pair

FILE = Path(__file__).parents[2] / "docs" / "images" / "annotate.png"
QUESTION = "Write a Python function that counts the words of a text file. It should cope with large files."
FIRST = """Use a **context manager**, so that the file is closed even if an error occurs:

```python
def count_words(path: str) -> int:
    with open(path, encoding="utf-8") as file:
        return sum(len(line.split()) for line in file)
```

It reads line by line, so a file of several gigabytes needs only a little memory.

1. `split()` without arguments splits at *any* whitespace, line breaks included.
2. An empty file gives `0`, as you would expect.
"""
SECOND = """Here is a function which counts the words:

```python
def count_words(path):
    text = open(path).read()
    return len(text.split(" "))
```

It reads the whole file and splits it at each space. Note:

- Two spaces in a row count as an empty word.
- The file is closed when Python collects it.
"""


def main() -> None:
    with tempfile.TemporaryDirectory() as directory, sync_playwright() as driver:
        store = Store(sqlite_url(Path(directory) / "store.db"))
        store.configure(Task(mode="pairs", guidelines="", gold_share=0.0), "screenshot", False)
        store.add_people(["ada"], "annotator")
        shown = AnnotationItem((Message("user", QUESTION),), (Shown("1", FIRST), Shown("2", SECOND)))
        store.add([pair(n) for n in range(1, 10)] + [shown] + [pair(n) for n in range(10, 25)])
        bound = listen("127.0.0.1", 0)
        server = ServerThread(store, bound)
        browser = driver.chromium.launch(executable_path=CHROMIUM, chromium_sandbox=False, args=list(FLAGS))
        page = browser.new_page(viewport={"width": 1280, "height": 760}, device_scale_factor=1.5)
        page.clock.install()
        page.goto(link(address(bound), store.write(lambda db: new_code(db, "ada", time.time()))))
        for number in range(1, 10):
            expect(page.locator(".turn.user .text")).to_have_text(f"Question {number}?")
            page.clock.fast_forward(17_000 + 900 * number)  # a person's pace
            page.keyboard.press("t")
        expect(page.locator(".turn.user .text")).to_have_text(QUESTION)
        FILE.parent.mkdir(parents=True, exist_ok=True)
        page.screenshot(path=FILE)
        browser.close()
        server.close()
        store.close()


if __name__ == "__main__":
    main()
