"""Model output is hostile: it neither runs, nor leaves its box, nor stops the person from answering."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import Page, expect

from preference.types import Message
from tests.browser.conftest import PHONE, Annotation, Desk, pair
from tests.browser.test_judging import at, at_end

# Each would set window.ran, send a request, or change the page, if it were taken for more than text.
PAYLOADS = (
    "<script>window.ran = 1</script>",
    "<img src=x onerror='window.ran = 1'><svg onload='window.ran = 1'></svg>",
    "<iframe srcdoc='<script>parent.ran = 1</script>'></iframe><object data='x'></object><embed src='x'>",
    "</div></article></main><style>* { display: none }</style><base href='http://192.0.2.1/'>",
    "<meta http-equiv='refresh' content='0;url=http://192.0.2.1/'><link rel=stylesheet href='http://192.0.2.1/x.css'>",
    "<form action='http://192.0.2.1/'><button id='item'>Tie</button><input autofocus onfocus='window.ran = 1'></form>",
    "[press](javascript:window.ran=1) [or](data:text/html,<script>parent.ran=1</script>) <javascript:window.ran=1>",
    "![picture](http://192.0.2.1/leak.png) ![more](data:image/svg+xml,<svg onload=window.ran=1>) <http://192.0.2.1/>",
    '[a](" onmouseover="window.ran=1) `" onclick="window.ran=1`\n\n```"><script>window.ran=1</script>\n<b>x</b>\n```',
    "| <img src=x onerror=window.ran=1> | b |\n|---|:-:|\n| <script>window.ran=1</script> | **x** |",
    "<a href='javascript:window.ran=1' style='position:fixed;inset:0;z-index:9'>everything</a>",
    "&lt;script&gt;window.ran = 1&lt;/script&gt; &#60;script&#62; \\<script>",
    "{{constructor.constructor('window.ran=1')()}} ${window.ran=1} <%= 1 %>",
)
FORBIDDEN = "script, img, svg, iframe, object, embed, style, base, meta, link, form, input, a, video, audio, template"
BIDI = (
    "user\u202egnihton\u202c \u2066isolated\u2069 \u200bzero\ufeff \u001b[31mred \u0000 "
    "\U000e0041tag \u200f\u200f\u200f"
)


def unharmed(desk: Desk, annotation: Annotation) -> None:
    """Nothing ran, nothing was requested elsewhere, no sideways scrolling, and the answers are in reach."""
    page = desk.page
    assert page.evaluate("window.ran") is None
    # The page's own buttons inside a text ("Show all") are the only elements that act.
    assert page.locator(f".text :is({FORBIDDEN})").count() == 0
    assert page.locator(".text :is([style], [onclick], [onerror], [href], [src], [id], [name])").count() == 0
    size = page.evaluate("[document.documentElement.scrollWidth, innerWidth, innerHeight]")
    assert size[0] <= size[1]
    cut_off = "[...document.querySelectorAll('.text')].filter((n) => n.scrollWidth > n.clientWidth + 1).length"
    assert page.evaluate(cut_off) == 0
    box = page.locator("#answers").bounding_box()
    assert box is not None
    assert box["y"] + box["height"] <= size[2] + 1
    desk.complaints.none(annotation.base)


@pytest.mark.parametrize("options", [{}, PHONE], ids=["desk", "phone"])
def test_markup_in_what_models_write_is_text(serve, desk, options):
    everything = "\n\n".join(PAYLOADS)
    turns = Message("system<script>", everything), Message("user", "Question 1?")
    annotation = serve([pair(1, everything, "harmless", *turns)])
    annotation.store.add([pair(2, f"- {PAYLOADS[1]}\n> {PAYLOADS[0]}\n# {PAYLOADS[6]}", f"*{PAYLOADS[10]}*")])
    ada = desk(**options)
    page = ada.open(annotation.link())
    at(page, 1)
    unharmed(ada, annotation)
    text = page.locator(".turn .text").first.inner_text()
    for words in ("<script>window.ran = 1</script>", "javascript:window.ran=1", "onerror", "http://192.0.2.1/leak.png"):
        assert words in text
    page.keyboard.press("d")
    unharmed(ada, annotation)
    page.keyboard.press("d")
    page.keyboard.press("t")
    at(page, 2)
    page.mouse.move(300, 300)
    unharmed(ada, annotation)
    page.keyboard.press("t")
    at_end(page)
    assert len(annotation.labels()) == 2


def test_every_payload_by_itself(serve, desk):
    annotation, ada = serve([pair(n, payload, "harmless") for n, payload in enumerate(PAYLOADS, start=1)]), desk()
    page = ada.open(annotation.link())
    for number in range(1, len(PAYLOADS) + 1):
        at(page, number)
        unharmed(ada, annotation)
        page.keyboard.press("t")
    at_end(page)


HUGE = {
    "one word": "a" * 200_000,
    "words": "lorem ipsum " * 17_000,
    "lines": "line\n" * 40_000,
    "emphasis": "*a **b _c_ " * 18_000,
    "marks": "*_~`[!" * 33_000,
    "backticks": "` `` ``` " * 22_000,
    "brackets": "[" * 100_000 + "](" * 50_000,
    "quotes": "> " * 100_000,
    "nested lists": "\n".join(" " * (i % 400) + "- x" for i in range(1_000)) + "- " * 90_000,
    "table": "|" * 2_000 + "\n" + "|-" * 2_000 + "|\n" + "||\n" * 60_000,
    "rules": "- " * 100_000 + "x",
    "spaces": "# " + " " * 199_990 + "x",
    "fences": "```\n```x\n" * 20_000,
    "overrides": "\u202ea" * 100_000,
    "combining": "e" + "\u0301" * 200_000,
}


def test_huge_text_keeps_the_page_usable(serve, desk):
    annotation, ada = serve([pair(n, text, text + "!") for n, text in enumerate(HUGE.values(), start=1)]), desk()
    page = ada.open(annotation.link())
    for number, text in enumerate(HUGE.values(), start=1):
        at(page, number)
        unharmed(ada, annotation)
        whole = page.locator("#response-left .more")
        expect(whole).to_have_text(re.compile(f"{len(text):,}|{len(text) + 1:,}"))  # either side
        whole.click()
        expect(whole).to_have_count(0)
        unharmed(ada, annotation)
        page.keyboard.press("d")
        expect(page.locator(".legend")).to_be_visible()
        unharmed(ada, annotation)
        page.keyboard.press("d")
        page.keyboard.press("ArrowRight")
    at_end(page)
    assert len(annotation.labels()) == len(HUGE)


def test_characters_that_cannot_be_seen_are_shown(serve, desk):
    annotation, ada = serve([pair(1, BIDI, f"```\n{BIDI}\n```\n\n[x]({BIDI.replace(' ', '')})")]), desk()
    page = ada.open(annotation.link())
    at(page, 1)
    for side in ("left", "right"):
        raw = page.evaluate(f"document.querySelector('#response-{side}').textContent")
        assert not set(raw) & set("\u202e\u202c\u2066\u2069\u200b\ufeff\u001b\u0000\u200f\U000e0041")
        badges = page.locator(f"#response-{side} .control").all_inner_texts()
        assert badges[:2] == ["U+202E", "U+202C"]
        assert {"U+001B", "U+200B", "U+FEFF", "U+E0041"} <= set(badges)
        assert any(badge.startswith("U+200F ×3") for badge in badges)
    assert page.locator(".control").first.get_attribute("title") == "right-to-left override"
    page.keyboard.press("d")
    assert "\u202e" not in page.evaluate("document.querySelector('.responses').textContent")
    unharmed(ada, annotation)


def test_right_to_left_text_keeps_to_its_box(serve, desk):
    hebrew, emoji = "שלום, זה טקסט מימין לשמאל (בדיקה).", "family 👨\u200d👩\u200d👧 and می\u200cخواهم"
    annotation, ada = serve([pair(1, hebrew, emoji)]), desk()
    page = ada.open(annotation.link())
    at(page, 1)
    right_to_left = page.get_by_text(hebrew)
    assert right_to_left.evaluate("n => getComputedStyle(n).direction") == "rtl"
    assert page.locator(".response").first.evaluate("n => getComputedStyle(n).direction") == "ltr"
    assert page.get_by_text(emoji).inner_text() == emoji  # joiners are ordinary text
    expect(page.locator(".control")).to_have_count(0)
    unharmed(ada, annotation)


MARKDOWN = """# Title #

Some **bold**, *italic*, ***both***, ~~gone~~, `code *x*`, snake_case_name, 2 * 3 * 4, \\*escaped\\*.
A second line with [a link](https://example.org/a_b_c "title") and ![a picture](cat.png).

1. one
2. two
   - inner
   - more

     a paragraph

> quoted
> **twice**

```python
x = "<b>*not bold*</b>"
```

| a | b |
|---|--:|
| 1 | `2 \\| 3` |

---
last"""


def test_markdown_is_rendered(serve, desk):
    annotation, ada = serve([pair(1, MARKDOWN, MARKDOWN)]), desk()
    page = ada.open(annotation.link())
    at(page, 1)
    text = page.locator("#response-left .text")
    assert text.locator("h3").all_inner_texts() == ["Title"]
    assert text.locator("strong").all_inner_texts() == ["bold", "both", "twice"]
    assert text.locator("em").all_inner_texts() == ["italic", "both"]
    assert text.locator("del").all_inner_texts() == ["gone"]
    assert text.locator("p code, td code").all_inner_texts() == ["code *x*", "2 | 3"]
    assert text.locator("ol > li").count() == 2
    assert text.locator("ol > li > ul > li").count() == 2
    assert text.locator("blockquote").inner_text() == "quoted\ntwice"
    assert text.locator("pre code").inner_text() == 'x = "<b>*not bold*</b>"'
    assert text.locator("th").all_inner_texts() == ["a", "b"]
    assert text.locator("hr").count() == 1
    assert text.locator(".link").all_inner_texts() == [
        'a link (https://example.org/a_b_c "title")',
        "image: a picture (cat.png)",
    ]
    paragraph = text.locator("p").first.inner_text()
    assert "snake_case_name, 2 * 3 * 4, *escaped*.\nA second line" in paragraph
    ada.complaints.none(annotation.base)


def test_the_policy_refuses_what_the_page_never_does(serve, desk):
    """The two nets below the page's own care: inline script and markup made of strings do not work here at all."""
    annotation, ada = serve([pair(1)]), desk()
    page: Page = ada.open(annotation.link())
    at(page, 1)
    inline = "const s = document.createElement('script'); s.append('window.ran = 1'); document.body.append(s)"
    for attempt in (inline, "document.body.innerHTML = '<b>x</b>'", "document.body.setAttribute('onclick', 'x')"):
        page.evaluate(f"() => {{ try {{ {attempt} }} catch (error) {{ window.refused = (window.refused ?? 0) + 1 }} }}")
    assert page.evaluate("window.ran") is None
    assert page.evaluate("window.refused") >= 2
    expect(page.locator(".response")).to_have_count(2)
    assert ada.complaints.errors
