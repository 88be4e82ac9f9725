"""The chat page, in a headless Chromium: it streams, tells drafted text apart, asks for a key, and trusts no text."""

import shutil

import pytest

from tests.runtime.server.harness import running

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as api:
        try:
            # Without CHROMIUM, the one that `playwright install chromium` fetches.
            browser = api.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        except playwright.Error as error:
            pytest.skip(f"no Chromium runs here: {error.message.splitlines()[0]}")
        yield browser
        browser.close()


@pytest.fixture
def page(browser):
    """A fresh tab; what goes wrong in its scripts fails the test."""
    page = browser.new_page()
    page.set_default_timeout(10_000)
    faults = []
    page.on("pageerror", lambda error: faults.append(str(error)))
    yield page
    page.close()
    assert not faults


def ask(page, text):
    page.fill("#prompt", text)
    page.press("#prompt", "Enter")
    page.wait_for_selector(".theirs:last-child:not(.waiting)")
    return page.text_content(".theirs:last-child .text")


def open_settings(page, **values):
    page.click("#show-settings")
    for name, value in values.items():
        page.fill(f"#{name.replace('_', '-')}", str(value))


def test_an_answer_streams_in_with_its_figures_and_drafted_text_in_colour(drafting_llm, page):
    with running(drafting_llm) as (_, address):
        page.goto(address)
        page.wait_for_selector(".state.ready")
        assert page.text_content("h1") == "tiny"
        open_settings(page, temperature=0, max_tokens=20)
        text = ask(page, "hello")
        drafted = page.eval_on_selector_all(".theirs .drafted", "spans => spans.map(span => span.textContent)")
        figures = page.text_content(".theirs .figures")
    assert drafted
    assert "".join(drafted) in text or len(drafted) > 1
    assert "tokens/s" in figures
    assert "first after" in figures
    assert "drafted" in figures


def test_the_conversation_goes_on_with_what_was_said_before(client, address, page):
    page.goto(address)
    page.wait_for_selector(".state.ready")
    open_settings(page, temperature=0, max_tokens=6)
    messages = []
    for text in ("hi", "and?"):
        messages.append({"role": "user", "content": text})
        answer = client.chat.completions.create(model="tiny", messages=messages, temperature=0, max_tokens=6)
        expected = answer.choices[0].message.content
        assert ask(page, text) == expected
        messages.append({"role": "assistant", "content": expected})
    page.click("#new-chat")
    assert page.query_selector(".turn") is None
    assert page.is_visible("#welcome")


def test_stop_ends_an_answer_and_keeps_what_came(held_llm, page):
    with running(held_llm) as (_, address):
        page.goto(address)
        page.wait_for_selector(".state.ready")
        page.fill("#prompt", "hello")
        page.press("#prompt", "Enter")
        page.wait_for_selector(".theirs .figures:not([hidden])")
        page.click("#send")
        page.wait_for_selector(".theirs:not(.waiting)")
        assert page.text_content(".theirs .figures").endswith("stopped")


def test_markup_in_a_text_stays_text(address, page):
    page.goto(address)
    page.wait_for_selector(".state.ready")
    hostile = "<img src=x onerror=document.title='taken'><script>document.title='taken'</script>"
    ask(page, hostile)
    assert page.text_content(".mine .text") == hostile
    assert page.query_selector(".turn img, .turn script") is None
    assert page.title() == "tiny · Enginewright"


def test_a_key_is_asked_for_until_it_is_right(shared_llm, page):
    with running(shared_llm, keys=["right"]) as (_, address):
        page.goto(address)
        page.wait_for_selector("#key-dialog[open]")
        assert not page.is_visible("#key-problem")
        page.fill("#key", "wrong")
        page.press("#key", "Enter")
        page.wait_for_selector("#key-problem:not([hidden])")
        page.fill("#key", "right")
        page.press("#key", "Enter")
        page.wait_for_selector(".state.ready")
        page.reload()
        page.wait_for_selector(".state.ready")  # the tab remembers it


def test_an_error_is_shown_where_the_answer_would_be(address, page):
    page.goto(address)
    page.wait_for_selector(".state.ready")
    open_settings(page, max_tokens=500)
    assert ask(page, "hello") == ""
    assert "exceeds this engine's 96 tokens" in page.text_content(".theirs.failed .figures")
