"""A person labels in a real browser while a real loop waits, and the loop trains on what they said."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

from playwright.sync_api import expect

from tests.integration.conftest import BIN, ROOT, TINY, journal, links, losses, pairs
from tests.tiny import tiny_model

STEPS, PROMPTS = 2, 3

# What the page makes of texts: Markdown, and signs that would be invisible spelt out.
SHOWN = """async (texts) => {
  const { response } = await import('/item.js');
  return texts.map((text) => response(text, 'left').querySelector('.text').textContent);
}"""


def test_a_loop_waits_for_a_browser_and_trains_on_what_is_said_there(desk, tmp_path):
    model = tiny_model(tmp_path / "tiny")
    words = [str(BIN / "rondo"), "run", str(TINY), f"run.root={tmp_path}", "run.name=asked", f"model.path={model}"]
    words += ["judge={kind: human, port: 0, annotators: [ada], rationale: false}", f"run.steps={STEPS}"]
    words += [
        f"sampling.prompts_per_step={PROMPTS}",
        "sampling.candidates=2",
        "evaluation.prompts=2",
        "evaluation.probe=0",
    ]
    env = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    process = subprocess.Popen(words, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        person = desk()
        page = person.open(links(process)["ada"])
        said: list[str] = []
        for number in range(STEPS * PROMPTS):
            # Between steps the page says that there is nothing yet; the next step's items come by themselves.
            expect(page.locator("#answers [data-action=left]")).to_be_enabled(timeout=240_000)
            said.append(page.locator("#response-left .text").text_content() or "")
            if number % 2:
                page.click("#answers [data-action=left]")
            else:
                page.keyboard.press("ArrowLeft")
            expect(page.locator("#progress-words")).to_contain_text(f"{number + 1} by you")
        rest = process.communicate(timeout=300)[0]
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 0, rest[-3000:]
    directory = tmp_path / "asked"
    assert set(losses(directory)) == {1, 2}
    assert [len(pairs(directory)[step]) for step in (1, 2)] == [PROMPTS] * STEPS
    texts = {r["id"]: r["text"] for r in journal(directory, "candidates")}
    chosen = []
    for record in journal(directory, "judgements"):
        if record["state"] == "waiting":  # as it was asked
            continue
        (verdict,) = record["judgements"]
        assert verdict["judge"]["name"] == "human"
        chosen.append(texts[verdict["first_id" if verdict["outcome"] == "first" else "second_id"]])
    assert len(said) == STEPS * PROMPTS
    assert Counter(page.evaluate(SHOWN, chosen)) == Counter(said)  # each time the answer on the left, and no other
