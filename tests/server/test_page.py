"""The web page: its files, and the page itself in headless Chromium."""

from __future__ import annotations

import json
import re
import shutil
import time
from importlib.util import find_spec

import pytest
from chats import say
from conftest import running, tiny_config

from rillm.server.page import page_files

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
needs_browser = pytest.mark.skipif(
    CHROMIUM is None or find_spec("playwright") is None, reason="needs chromium and playwright"
)


def test_files(server, start_server):
    reply = server.client.get("/")
    assert reply.status_code == 200
    assert reply.headers["content-type"] == "text/html; charset=utf-8"
    policy = reply.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    names = re.findall(r'(?:src|href)="([^"]+)"', reply.text)
    assert len(names) == 3
    modules = re.findall(r'from "\./([^"]+)"', server.client.get("/ui/app.js").text)
    for path in (*names, *(f"ui/{name}" for name in modules)):
        assert server.client.get(f"/{path}").status_code == 200
    for path in ("/ui/", "/ui/nothing.js", "/ui/../app.py", "/ui/%2e%2e/app.py", "/ui/index.html"):
        assert server.client.get(path).status_code == 404
    closed = start_server(api_keys=("k",), ui=False)
    assert closed.client.get("/").status_code == 401
    assert closed.client.get("/", headers={"X-Api-Key": "k"}).status_code == 404
    locked = start_server(api_keys=("k",))
    assert locked.client.get("/").status_code == 200
    assert locked.client.get("/ui/app.js").status_code == 200
    assert locked.client.get("/props").status_code == 401


def test_nothing_comes_from_elsewhere_and_no_html_from_text(server):
    names = [path.removeprefix("/ui/") for path in page_files() if path.endswith((".js", ".css"))]
    assert "app.js" in names
    assert "style.css" in names
    for name in names:
        source = server.client.get(f"/ui/{name}").text
        assert not re.search(r"https?://[a-z]", source), name
        code = re.sub(r"//.*", "", source)
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", code)


def test_both_languages_say_the_same_things(server):
    source = server.client.get("/ui/texts.js").text
    english, chinese = source.split("zh: {")
    names = [re.findall(r"(\w+): \"", part) for part in (english, chinese)]
    assert names[0] == names[1]


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(browser, server):
    context = browser.new_context(locale="en")
    page = context.new_page()
    problems = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("console", lambda message: problems.append(message.text))
    page.on("request", lambda request: None if request.url.startswith(server.url)
            else problems.append(request.url))  # fmt: skip
    page.goto(server.url)
    page.locator("#model", has_text="tiny").wait_for()
    yield page
    context.close()
    assert problems == []


def ask(page, text):
    page.fill("#input", text)
    page.press("#input", "Enter")
    page.wait_for_selector("#send:not([hidden])")


def bodies(page):
    return page.locator(".message .body").all_inner_texts()


@needs_browser
def test_a_chat_and_what_can_be_done_with_it(page):
    ask(page, "What is RISC-V?")
    question, first = bodies(page)
    assert question == "What is RISC-V?"
    assert len(first) > 10
    assert "tokens/s" in page.locator(".message.assistant .tools").inner_text()
    assert re.fullmatch(r"\d+ / 2048", page.locator("#context").inner_text())
    ask(page, "你好")
    assert len(bodies(page)) == 4
    page.reload()
    page.wait_for_selector(".message.assistant")
    assert bodies(page)[:2] == [question, first]
    page.locator(".message.assistant .tools").first.get_by_text("Again").click()
    page.wait_for_selector("#send:not([hidden])")
    assert len(bodies(page)) == 2
    page.get_by_text("Edit").click()
    page.fill(".message textarea", "hello")
    page.press(".message textarea", "Enter")
    page.wait_for_selector("#send:not([hidden])")
    assert bodies(page)[0] == "hello"
    page.click("#new-chat")
    ask(page, "other")
    assert page.locator(".chat").count() == 2
    page.on("dialog", lambda dialog: dialog.accept())
    page.locator(".chat button:last-child").first.click()
    assert page.locator(".chat").count() == 1
    assert bodies(page)[0] == "hello"


@needs_browser
def test_copying_works_where_there_is_no_clipboard(page):
    # As on plain http from another machine.
    page.add_init_script("delete Navigator.prototype.clipboard")
    page.reload()
    page.locator("#model", has_text="tiny").wait_for()
    ask(page, "what to copy")
    page.locator(".message.user .tools").get_by_text("Copy").click()
    page.focus("#input")
    page.keyboard.press("Control+V")
    assert page.input_value("#input") == "what to copy"


@needs_browser
def test_settings_and_prompt(page, server):
    page.click("#show-settings")
    page.fill("#system", "Be brief")
    page.fill("#set-max_tokens", "3")
    page.fill("#set-temperature", "0")
    page.get_by_role("button", name="Close").click()
    ask(page, "hello")
    assert "3 tokens" in page.locator(".message.assistant .tools").inner_text()
    assert "limit" in page.locator(".message.assistant .tools").inner_text()
    page.click("#show-prompt")
    page.wait_for_selector("#prompt[open]")
    assert "<|system|>\nBe brief<|user|>\nhello" in page.locator("#prompt-text").inner_text()
    page.keyboard.press("Escape")
    assert server.get("/slots")[0]["params"]["temperature"] == 0


@needs_browser
def test_stop_ends_the_answer_on_the_server(page, server, monkeypatch):
    real = type(server.engine).step

    def step(self):
        time.sleep(0.03)
        return real(self)

    monkeypatch.setattr(type(server.engine), "step", step)
    say(server, monkeypatch, "word " * 500)
    page.click("#show-settings")
    page.fill("#set-max_tokens", "1000")
    page.get_by_role("button", name="Close").click()
    page.fill("#input", "go")
    page.press("#input", "Enter")
    page.locator(".assistant .body", has_text="word word word").wait_for()
    page.click("#stop")
    page.wait_for_selector("#send:not([hidden])")
    text = bodies(page)[1]
    assert 10 < len(text) < 1000
    deadline = time.monotonic() + 5
    while server.engine.has_work:
        assert time.monotonic() < deadline


@needs_browser
def test_what_a_model_writes_cannot_run(page, server, monkeypatch):
    evil = '<img src=x onerror="hurt=1"> [a](javascript:hurt=1) <script>hurt=1</script>'
    say(server, monkeypatch, evil)
    page.click("#show-settings")
    page.fill("#set-max_tokens", "200")
    page.get_by_role("button", name="Close").click()
    ask(page, "go")
    assert bodies(page)[1] == evil
    assert page.evaluate("window.hurt") is None
    assert page.locator(".message img, .message script, .message a").count() == 0


MARKDOWN = {
    "plain": "<p>plain</p>",
    "# T #\ntext": "<h1>T</h1><p>text</p>",
    "a **b** *c* `d*e*` ~~f~~": "<p>a <strong>b</strong> <em>c</em> <code>d*e*</code> "
    "<del>f</del></p>",
    "2 * 3 * 4 and a_b_c": "<p>2 * 3 * 4 and a_b_c</p>",
    "- a\n- b\n  - c\n\n1. d\n2. e": "<ul><li>a</li><li>b<ul><li>c</li></ul></li></ul>"
    '<ol start="1"><li>d</li><li>e</li></ol>',
    "> q\n> r\n\nx": "<blockquote><p>q\nr</p></blockquote><p>x</p>",
    "| a | b |\n|---|:-:|\n| 1 | `2` |": "<table><thead><tr><th>a</th><th>b</th></tr></thead>"
    "<tbody><tr><td>1</td><td><code>2</code></td></tr></tbody></table>",
    "```py\na < b\n```": '<div class="fence"><pre><code data-language="py">a &lt; b</code></pre>'
    '<button type="button" class="quiet">copy</button></div>',
    "```\nopen": '<div class="fence"><pre><code>open</code></pre>'
    '<button type="button" class="quiet">copy</button></div>',
    "[x](https://a.b/c) [y](javascript:alert(1)) [z](data:text/html,x)": '<p><a href="https://a.b/c"'
    ' target="_blank" rel="noopener noreferrer nofollow">x</a> [y](javascript:alert(1)) '
    "[z](data:text/html,x)</p>",
    "---": "<hr>",
    "<b>&amp;": "<p>&lt;b&gt;&amp;amp;</p>",
}


@needs_browser
@pytest.mark.parametrize("source", MARKDOWN)
def test_markdown(page, source):
    code = """async (source) => {
        const { render } = await import('/ui/markdown.js');
        const box = document.createElement('div');
        box.append(render(source));
        return box.innerHTML;
    }"""
    assert page.evaluate(code, source) == MARKDOWN[source]


@needs_browser
def test_markdown_is_fast_on_odd_texts(page):
    sources = ["*" * 20000, "`" * 20000, "[" * 20000, "> " * 20000, "**a " * 5000,
               "- a\n" * 3000, "|" * 20000 + "\n|-|", "[a](" * 5000,
               "  - a\n    " * 2000]  # fmt: skip
    code = """async (sources) => {
        const { render } = await import('/ui/markdown.js');
        return sources.map((source) => {
            const started = performance.now();
            const text = render(source).textContent;
            return [text.length > 0, performance.now() - started];
        });
    }"""
    for source, (_, milliseconds) in zip(sources, page.evaluate(code, sources), strict=True):
        assert milliseconds < 4000, (source[:20], milliseconds)


@needs_browser
def test_languages_themes_and_phones(browser, server):
    context = browser.new_context(locale="zh-CN", color_scheme="dark",
                                  viewport={"width": 360, "height": 640})  # fmt: skip
    page = context.new_page()
    page.goto(server.url)
    page.locator("#model", has_text="tiny").wait_for()
    assert page.locator("#send").inner_text() == "发送"
    assert not page.locator("#new-chat").is_visible()
    page.click("#menu")
    page.click("#language")
    assert page.locator("#send").inner_text() == "Send"
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.click("#theme")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != dark
    page.click("#new-chat")
    ask(page, "x" * 300)
    wide = page.evaluate("document.documentElement.scrollWidth")
    assert wide <= 360
    page.reload()
    assert page.evaluate("document.documentElement.dataset.theme") == "light"
    context.close()


@needs_browser
def test_models_are_chosen_and_loaded_when_they_are_asked(browser, model_path, tmp_path):
    for name in ("first", "second"):
        shutil.copy(model_path, tmp_path / f"{name}.gguf")
    config = tiny_config(tmp_path, n_predict=8, context_length=512, models_autoload=False)
    with running(config) as server:
        context = browser.new_context(locale="en")
        page = context.new_page()
        page.goto(server.url)
        page.locator("#models").wait_for()
        assert page.locator("#models option").all_inner_texts() == ["first", "second"]
        assert not page.locator("#model").is_visible()
        status = {item["id"]: item["status"]["value"] for item in server.get("/models")["data"]}
        assert set(status.values()) == {"unloaded"}  # to look is no reason to load
        page.select_option("#models", "second")
        ask(page, "hello")
        assert len(bodies(page)[1]) > 2
        assert re.fullmatch(r"\d+ / 512", page.locator("#context").inner_text())
        assert page.locator("#models option").all_inner_texts() == ["first", "second ●"]
        page.reload()
        page.locator("#models option", has_text="●").wait_for(state="attached")
        assert page.locator("#models").input_value() == "second"
        server.post("/models/unload", {"model": "second"})
        page.locator(".message.assistant .tools").first.get_by_text("Again").click()
        page.wait_for_selector("#send:not([hidden])")
        assert "not loaded" in bodies(page)[1]
        page.locator("#models option", has_text="●").wait_for(state="detached")
        page.locator(".message.assistant .tools").first.get_by_text("Again").click()
        page.locator("#models option", has_text="●").wait_for(state="attached")
        page.wait_for_selector("#send:not([hidden])")
        assert "not loaded" not in bodies(page)[1]
        context.close()


@needs_browser
def test_a_key_is_asked_for(browser, start_server):
    server = start_server(api_keys=("secret",), alias="locked")
    context = browser.new_context(locale="en")
    page = context.new_page()
    page.goto(server.url)
    page.wait_for_selector("#settings[open]")
    page.fill("#api-key", "secret")
    page.get_by_role("button", name="Close").click()
    page.locator("#model", has_text="locked").wait_for()
    ask(page, "hello")
    assert len(bodies(page)[1]) > 2
    stored = json.loads(page.evaluate("localStorage.getItem('rillm.settings')"))
    assert stored["apiKey"] == "secret"
    context.close()
