"""The console in a real browser against a real server: every button, by mouse and by keyboard.

A violation of the page's content security policy, or an error in its scripts, fails the test in
which it happens.
"""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import Browser, Dialog, Page, expect, sync_playwright

from forgetting.data.image_set import image, indices, png_bytes
from forgetting.data.sources import open_image_set
from serving.config.backbones import embedded_folder
from serving.config.sources import load_settings
from serving.loadgen.traffic import Traffic
from tests.e2e.conftest import Server

HOSTILE = "<img src=x onerror=alert(1)>"
"""This server's name for the class "3": it contains markup."""
REASON = "file <b>114</b> & more"
WIDE, NARROW = {"width": 1280, "height": 900}, {"width": 360, "height": 780}
TRAINED_MS = 240_000
SETTLED_LOOKS = 5
MOST_LINES_OF_A_FIGURE = """() => {
  const tiles = document.getElementById("tiles");
  const canary = document.getElementById("canary");
  tiles.classList.add("five");  // as where canary classes are probed
  canary.hidden = false;
  const lines = [...tiles.querySelectorAll("dd")].map(figure =>
    figure.clientHeight / parseFloat(getComputedStyle(figure).lineHeight));
  canary.hidden = true;
  tiles.classList.remove("five");
  return Math.max(...lines);
}"""

expect.set_options(timeout=30_000)


# -- what is needed


@pytest.fixture(scope="module")
def chromium(project_root: Path) -> tuple[str, dict[str, str]]:
    """The path of a chromium, and its environment."""
    found = shutil.which("chromium")
    if found is not None:
        return found, dict(os.environ)
    unpacked = project_root / ".venv" / "chromium" / "usr" / "lib"
    binary = unpacked / "chromium" / "chromium"
    if not binary.exists():
        pytest.skip("no chromium on the PATH, and none unpacked by `make chromium`")
    folders = [
        folder for each in unpacked.glob("*-linux-gnu") for folder in (each, each / "pulseaudio")
    ]
    return str(binary), {**os.environ, "LD_LIBRARY_PATH": ":".join(map(str, folders))}


@pytest.fixture(scope="module")
def browser(chromium: tuple[str, dict[str, str]]) -> Iterator[Browser]:
    path, environment = chromium
    # Chromium's sandbox refuses to run as root, and tests in a container run as root.
    arguments = ["--no-sandbox"] if os.getuid() == 0 else []
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(
            executable_path=path, args=arguments, env=dict(environment)
        )
        yield launched
        launched.close()


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The digits as a folder of images, in which the class "3" has a name with markup."""
    folder = tmp_path_factory.mktemp("pictures")
    images = open_image_set("digits")
    with (folder / "index.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["path", "class", "split"])
        for split in ("train", "val", "test"):
            for i in indices(images, split):
                name = renamed(images.classes[int(images.labels[i])])
                (folder / name).mkdir(exist_ok=True)
                path = folder / name / f"{i}.png"
                path.write_bytes(png_bytes(image(images, int(i))))
                table.writerow([path.relative_to(folder), name, split])
    return folder


def renamed(name: str) -> str:
    return HOSTILE if name == "3" else name


@pytest.fixture(scope="module")
def server(
    make_server: Callable[..., Server],
    pictures: Path,
    digits_backbones: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Server]:
    """A server whose model knows the class with markup in its name; every request is shadowed."""
    backbone = tmp_path_factory.mktemp("backbone") / "digits"
    shutil.copytree(embedded_folder(load_settings()), backbone)
    spec = json.loads((backbone / "backbone.json").read_text())
    spec["classes"] = [renamed(name) for name in spec["classes"]]
    (backbone / "backbone.json").write_text(json.dumps(spec))
    running = make_server(
        f"images = '{pictures}'\n[backbone]\ndirectory = '{backbone}'\n[monitor]\nshare = 1.0\n"
    ).start()
    yield running
    assert running.stop() == 0


class Console:
    """A browser tab with the console, and the errors in it."""

    def __init__(self, browser: Browser, server: Server, **options: Any) -> None:
        self.context = browser.new_context(viewport=WIDE, **options)
        self.page = self.context.new_page()
        self.server = server
        self.wrong: list[str] = []
        self.page.expose_binding("violated", lambda _, what: self.wrong.append(what))
        self.page.add_init_script(
            "document.addEventListener('securitypolicyviolation', e => "
            "violated(`${e.violatedDirective}: ${e.blockedURI} ${e.sample}`))"
        )
        self.page.on("pageerror", lambda error: self.wrong.append(str(error)))
        self.page.on("dialog", self._note_alert)
        self.page.goto(f"{server.operator_url}/console")

    def _note_alert(self, dialog: Dialog) -> None:
        self.wrong.append(f"alert: {dialog.message}")
        dialog.dismiss()

    def unlock(self) -> Page:
        self.page.locator("#token").fill(self.server.operator_token)
        self.page.keyboard.press("Enter")
        expect(self.page.locator("#leak-verdict")).not_to_have_text("…")
        return self.page

    def close(self) -> None:
        self.context.close()
        assert self.wrong == []


@pytest.fixture
def console(browser: Browser, server: Server) -> Iterator[Console]:
    opened = Console(browser, server)
    yield opened
    opened.close()


@pytest.fixture
def page(console: Console) -> Page:
    return console.unlock()


def focused(page: Page) -> str:
    """The accessible name of the focused element, as a screen reader says it."""
    name: str = page.evaluate(
        "(() => { const n = document.activeElement;"
        " return n.getAttribute('aria-label') ?? (n.labels?.[0] ?? n).textContent.trim(); })()"
    )
    return name


def tab_to(page: Page, name: str, *, limit: int = 60) -> None:
    """Press Tab until the control with that name has the focus."""
    for _ in range(limit):
        if focused(page) == name:
            return
        page.keyboard.press("Tab")
    raise AssertionError(f"Tab never reached {name!r}; it is at {focused(page)!r}")


def row(page: Page, table: str, words: str) -> Any:
    return page.locator(f"#{table} tbody tr").filter(has_text=words)


# -- before anything was forgotten


def test_the_token_is_asked_for_and_stays_in_this_tab(console: Console) -> None:
    page = console.page
    expect(page.locator("#token")).to_be_focused()
    expect(page.locator("main")).to_be_hidden()
    page.locator("#token").fill("wrong")
    page.get_by_role("button", name="Open the console").click()
    expect(page.get_by_role("alert").filter(has_text="doesn’t take this token")).to_be_visible()
    console.unlock()
    kept = page.evaluate("[{...sessionStorage}, {...localStorage}, document.cookie]")
    assert kept == [{"lethe-operator-token": console.server.operator_token}, {}, ""]
    page.reload()
    expect(page.locator("main")).to_be_visible()
    page.get_by_role("button", name="Lock").click()
    expect(page.locator("main")).to_be_hidden()
    expect(page.locator("#token")).to_be_focused()
    assert page.evaluate("sessionStorage.length") == 0
    assert console.server.operator_token not in page.content()


def test_everything_but_the_files_needs_the_operators_token(server: Server) -> None:
    with httpx.Client(base_url=server.operator_url, trust_env=False) as visitor:
        for path in ("/console", "/console/console.js", "/console/console.css"):
            assert visitor.get(path).status_code == 200
        auditor = {"Authorization": f"Bearer {server.auditor_token}"}
        for path in ("/v1/live", "/v1/erasures", f"/v1/audit/{'0' * 32}"):
            assert visitor.get(path).status_code == 401
            assert visitor.get(path, headers=auditor).status_code == 401
        operator = {"Authorization": f"Bearer {server.operator_token}"}
        assert visitor.get(f"/v1/audit/{'0' * 32}", headers=operator).status_code == 404


def test_the_browser_refuses_whatever_the_page_was_not_made_with(
    browser: Browser, server: Server
) -> None:
    console = Console(browser, server)
    console.page.evaluate(
        """() => {
          const script = document.createElement("script");
          try { script.textContent = "document.title = 'taken over'"; } catch {}
          document.head.append(script);
          try { document.body.innerHTML = "<b>markup</b>"; } catch {}
          const image = new Image();
          image.src = "http://127.0.0.1:9/pixel.png";
          fetch("http://127.0.0.1:9/").catch(() => {});
        }"""
    )
    expect(console.page).to_have_title("Lethe console")
    expect(console.page.locator("#locked")).to_be_visible()
    console.page.wait_for_timeout(200)
    broken = {what.partition(":")[0] for what in console.wrong}
    assert broken >= {"require-trusted-types-for", "img-src", "connect-src"}
    console.context.close()


def test_an_empty_console_says_what_to_do_first(page: Page, erased_later: None) -> None:
    expect(page.locator("#headline")).to_have_text("The bare backbone serves on every replica")
    expect(page.locator("#erasures-empty")).to_contain_text("Start with Forget…")
    expect(page.locator("#running-empty")).to_contain_text("Nothing is running")
    expect(page.locator("#leak-verdict")).to_have_text("Nothing to leak")
    expect(page.locator("#retained-verdict")).to_have_text("Blind")
    expect(page.locator("#watching")).to_have_text("Watched by shadowing 100 % of the requests.")
    expect(page.locator("#canary")).to_be_hidden()
    expect(page.locator("#latency-words")).to_contain_text("No predictions")
    expect(page.locator("#replicas tbody tr")).to_have_count(2)


@pytest.fixture
def erased_later(server: Server) -> None:
    """Fails if a class was forgotten before: the tests of this file depend on their order."""
    with server.client() as client:
        assert client.status()["jobs"] == []


def test_a_dialog_keeps_the_focus_and_gives_it_back(page: Page) -> None:
    tab_to(page, "Forget…")
    ring = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert ring == "solid"
    page.keyboard.press("Enter")
    expect(page.get_by_label("Find a class")).to_be_focused()
    for key in ("Tab", "Shift+Tab"):
        seen = set()
        for _ in range(20):
            page.keyboard.press(key)
            assert page.evaluate("document.activeElement.closest('dialog')?.id") == "ask"
            seen.add(focused(page))
        assert {"Cancel", "Forget", HOSTILE} <= seen
    page.keyboard.press("Escape")
    expect(page.locator("#ask")).to_be_hidden()
    expect(page.get_by_role("button", name="Forget…")).to_be_focused()


def test_nothing_is_sent_by_enter_or_without_a_class(console: Console, page: Page) -> None:
    sent: list[str] = []
    page.on("request", lambda request: sent.append(request.method))
    page.get_by_role("button", name="Forget…").click()
    page.get_by_label("Reason").fill("none")
    page.keyboard.press("Enter")
    page.locator("#ask-go").click()
    expect(page.locator("#ask-problem")).to_have_text("Choose at least one class.")
    expect(page.get_by_label("Find a class")).to_be_focused()
    page.get_by_role("button", name="Cancel").click()
    expect(page.locator("#ask")).to_be_hidden()
    assert "POST" not in sent


# -- forget


@dataclass(frozen=True)
class Erased:
    """What the console showed of a forget command that was entered by keyboard alone."""

    asked: str
    notice: str
    running: str
    """Each text that the console showed for the running job, in order."""
    job: dict[str, Any]
    """The job's view from the API when it is done."""


@pytest.fixture(scope="module")
def erased(browser: Browser, server: Server) -> Erased:
    """The class with markup in its name, forgotten."""
    console = Console(browser, server)
    page = console.unlock()
    page.evaluate(
        """() => {
          const running = document.getElementById("running");
          window.said = [];
          new MutationObserver(() => window.said.push(running.innerText))
            .observe(running, { childList: true, subtree: true, characterData: true });
        }"""
    )
    tab_to(page, "Forget…")
    page.keyboard.press("Enter")
    page.keyboard.type("onerror")
    tab_to(page, HOSTILE)
    page.keyboard.press("Space")
    tab_to(page, "Reason (optional)")
    page.keyboard.type(REASON)
    tab_to(page, "Forget 1 class")
    asked = page.locator("#ask").inner_text()
    page.keyboard.press("Enter")
    expect(page.locator("#notice")).to_contain_text("accepted", timeout=90_000)
    expect(page.get_by_role("button", name="Forget…")).to_be_focused()
    notice = page.locator("#notice").inner_text()
    progress = page.locator("#running progress[max]")
    expect(progress).to_be_visible(timeout=TRAINED_MS)
    expect(page.locator("#running-empty")).to_be_visible(timeout=TRAINED_MS)
    running = " ".join(page.evaluate("window.said"))
    with server.client() as client:
        (job,) = client.status()["jobs"]
    console.close()
    return Erased(asked, notice, running, job)


def test_forget_masks_at_once_and_then_trains(erased: Erased, page: Page) -> None:
    assert f"Chosen: {HOSTILE}" in erased.asked
    assert "masked on every replica" in erased.asked
    assert f"job-1 accepted: {HOSTILE} to be forgotten and masked on 2 replicas" in erased.notice
    assert re.search(r"job-1 forgets .* of \d+", erased.running.replace("\n", " "))
    assert "NaN" not in erased.running
    assert erased.job["state"] == "done", erased.job["refused"]
    assert erased.job["classes"] == [HOSTILE]
    expect(page.locator("#headline")).to_have_text("Release 2 serves on every replica")
    expect(page.locator("#summary")).to_contain_text(f"Forgotten by the weights: {HOSTILE}")
    expect(row(page, "erasures", "job-1")).to_contain_text("Forgotten by the weights, and masked")
    expect(row(page, "releases", "2, active")).to_contain_text("adapter")
    expect(row(page, "jobs", "job-1")).to_contain_text("done")


def test_a_name_that_is_markup_is_shown_as_its_letters(erased: Erased, page: Page) -> None:
    expect(row(page, "erasures", "job-1").locator("td").first).to_have_text(HOSTILE)
    page.get_by_role("button", name="Audit card").click()
    expect(page.locator("#card-title")).to_have_text(f"Erasure of {HOSTILE}")
    expect(page.locator("img, b")).to_have_count(0)


def test_the_audit_card_shows_prints_and_saves_one_erasure(erased: Erased, page: Page) -> None:
    page.get_by_role("button", name="Audit card").focus()
    page.keyboard.press("Enter")
    card = page.locator("#card")
    expect(card).to_contain_text("Forgotten by the weights, and masked.")
    expect(card).to_contain_text("forgotten by the weights on every replica, by release 2")
    expect(card).to_contain_text("Recognised by the weights alone (every feature edit taken out)")
    card.get_by_text("Records (").click()
    expect(card).to_contain_text(f"Reason: {REASON}")
    with page.expect_download() as saving:
        page.get_by_role("button", name="Save as JSON").click()
    saved = json.loads(saving.value.path().read_text())
    assert saved["subject"] == erased.job["subjects"][0]
    assert [record["seq"] for record in saved["records"]]
    page.emulate_media(media="print")
    expect(card).to_be_visible()
    expect(page.locator("main")).to_be_hidden()
    expect(page.get_by_role("button", name="Print")).to_be_hidden()
    page.emulate_media(media="screen")
    page.keyboard.press("Escape")
    expect(card).to_be_hidden()
    expect(page.get_by_role("button", name="Audit card")).to_be_focused()


def test_times_are_the_viewers_with_utc_in_the_title(
    erased: Erased, browser: Browser, server: Server
) -> None:
    console = Console(browser, server, timezone_id="Asia/Kolkata")
    shown = row(console.unlock(), "jobs", "job-1").locator("time").first
    utc = erased.job["requested_at"][:19].replace("T", " ")
    assert shown.get_attribute("title") == f"{utc} UTC"
    minutes = int(utc[14:16]) + 30
    assert shown.inner_text()[14:16] == f"{minutes % 60:02}"
    console.close()


def test_live_traffic_is_counted_and_judged(
    erased: Erased, page: Page, server: Server, pictures: Path, tmp_path: Path
) -> None:
    with Traffic(server.url, server.auditor_token, images=str(pictures), rate=12) as traffic:
        traffic.wait_for(100)
        expect(page.locator("#rate-verdict")).to_have_text(re.compile(r"^[1-9][\d.]* /s$"))
        expect(page.locator("#latency-verdict")).to_have_text(re.compile(r"^(over )?[\d.,]+ ms$"))
        expect(page.locator("#leak-verdict")).to_have_text("Quiet")
        expect(page.locator("#retained-verdict")).to_have_text(re.compile(r"^\d+\.\d % agree$"))
        page.screenshot(path=tmp_path / "traffic.png", full_page=True)
    found = settled_leak_counts(server)
    assert found["matches"] > 0
    bound = f"{found['upper_bound'] * 100:.1f} %"
    expect(page.locator("#leak-words")).to_contain_text(f"At most {bound}")
    leaks = f"{found['leaks']} of {found['matches']}"
    expect(page.locator("#leak-figures")).to_contain_text(leaks)


def settled_leak_counts(server: Server) -> dict[str, Any]:
    """The monitor's numbers on leaks, after all samples have been scored and counted."""
    deadline = time.monotonic() + 60
    seen: list[dict[str, Any]] = []
    with httpx.Client(base_url=server.operator_url, trust_env=False) as visitor:
        token = {"Authorization": f"Bearer {server.operator_token}"}
        while len(seen) < SETTLED_LOOKS or seen[-1] != seen[-SETTLED_LOOKS]:
            assert time.monotonic() < deadline, "the monitor is still counting"
            time.sleep(1)
            seen.append(visitor.get("/v1/live", headers=token).json()["leak"])
    return seen[-1]


# -- rollback and restore


def test_rollback_says_what_it_does_and_does_it(erased: Erased, page: Page, server: Server) -> None:
    row(page, "releases", "bare backbone").get_by_role("button").click()
    dialog = page.get_by_role("dialog")
    expect(dialog).to_contain_text("They have forgotten no class")
    expect(dialog).to_contain_text(f"stays masked ({HOSTILE})")
    page.get_by_label("Reason").fill("too much was lost")
    page.get_by_role("button", name="Roll back to 0").click()
    expect(page.locator("#notice")).to_contain_text("Release 3 serves what release 0 had")
    expect(row(page, "releases", "3, active")).to_contain_text("rollback to 0")
    expect(row(page, "erasures", "job-1")).to_contain_text("Masked; the weights still know it")
    with server.client() as client:
        assert client.status()["release"] == 3
        assert client.status()["masked_only"] == [HOSTILE]


def test_a_refused_command_says_why_and_can_be_sent_again(
    erased: Erased, page: Page, server: Server
) -> None:
    page.get_by_role("button", name="Roll back to release 2").click()
    with server.client() as client:
        client.suspend(reason="a test")
        page.get_by_role("button", name="Roll back to 2").click()
        expect(page.locator("#ask-problem")).to_contain_text("suspended")
        client.resume(reason="a test")
    expect(row(page, "replicas", "serving")).to_have_count(2)
    page.get_by_role("button", name="Roll back to 2").click()
    expect(page.locator("#notice")).to_contain_text("serves what release 2 had")
    expect(page.locator("#ask")).to_be_hidden()


def test_restore_needs_a_reason_and_brings_the_class_back(
    erased: Erased, page: Page, server: Server
) -> None:
    restore = row(page, "erasures", "job-1").get_by_role("button", name="Restore")
    restore.click()
    dialog = page.get_by_role("dialog")
    expect(dialog).to_contain_text(f"ends the erasure of {HOSTILE}")
    page.locator("#ask-go").click()
    expect(page.locator("#ask-problem")).to_have_text("A reason is needed.")
    expect(page.locator("#ask-reason")).to_be_focused()
    page.locator("#ask-reason").fill("the request was withdrawn")
    page.locator("#ask-go").click()
    expect(page.locator("#notice")).to_contain_text(f"{HOSTILE} is restored by release")
    expect(row(page, "erasures", "job-1")).to_contain_text("Restored: the erasure was ended")
    expect(restore).to_have_count(0)
    # The button is gone, since the row's erasure has ended; the focus must not be lost.
    expect(page.locator("#headline")).to_be_focused()
    with server.client() as client:
        assert client.status()["under_erasure"] == []


def test_a_suspended_server_is_shown_as_suspended(page: Page, server: Server) -> None:
    with server.client() as client:
        client.suspend(reason="a test")
        words = page.get_by_role("alert").filter(has_text="Serving is suspended")
        expect(words).to_be_visible()
        expect(page.locator("#replicas tbody")).to_contain_text("suspended")
        client.resume(reason="a test")
    expect(words).to_be_hidden()


def test_suspend_and_resume_say_what_they_do_and_need_a_reason(page: Page, server: Server) -> None:
    page.get_by_role("button", name="Suspend…").click()
    expect(page.get_by_role("dialog")).to_contain_text("Every prediction is refused")
    page.locator("#ask-go").click()
    expect(page.locator("#ask-problem")).to_have_text("A reason is needed.")
    page.locator("#ask-reason").fill("case 12")
    page.locator("#ask-go").click()
    expect(page.locator("#notice")).to_contain_text("Nothing is answered any more: 2 replicas")
    expect(page.get_by_role("button", name="Suspend…")).to_be_hidden()
    with server.client() as client:
        assert client.status()["suspended"]
        page.get_by_role("button", name="Resume…").click()
        expect(page.get_by_role("dialog")).to_contain_text("Replicas answer again")
        page.locator("#ask-reason").fill("case 12 is closed")
        page.locator("#ask-go").click()
        expect(page.locator("#notice")).to_contain_text("2 replicas answer again")
        expect(page.get_by_role("button", name="Suspend…")).to_be_visible()
        assert not client.status()["suspended"]


# -- cut off


def test_a_page_without_an_answer_says_so_and_asks_less_and_less(
    console: Console, page: Page
) -> None:
    console.context.set_offline(True)
    expect(page.get_by_role("alert").filter(has_text="No answer since")).to_be_visible()
    expect(page.locator("#contact")).to_have_text("Cut off")
    expect(page.locator("#cutoff-next")).to_have_text(re.compile(r"Next try in [5-9] s\."))
    console.context.set_offline(False)
    page.get_by_role("button", name="Try now").click()
    expect(page.locator("#cutoff")).to_be_hidden()
    expect(page.locator("#contact")).to_have_text(re.compile(r"^Live, \d\d:\d\d:\d\d$"))


def test_a_silent_monitor_is_said_to_be_silent(page: Page, server: Server) -> None:
    monitor = server.process("ray::Monitor")
    os.kill(monitor, signal.SIGSTOP)
    try:
        words = page.get_by_role("alert").filter(has_text="The monitor gives no answer")
        expect(words).to_be_visible()
        expect(page.locator("#headline")).to_contain_text("serves on every replica")
    finally:
        os.kill(monitor, signal.SIGCONT)
    expect(page.locator("#cutoff")).to_be_hidden()


# -- looks


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("viewport", [WIDE, NARROW], ids=["wide", "narrow"])
def test_the_page_fits_its_window(
    erased: Erased,
    browser: Browser,
    server: Server,
    tmp_path: Path,
    scheme: Any,
    viewport: Any,
) -> None:
    console = Console(browser, server, color_scheme=scheme)
    page = console.unlock()
    page.set_viewport_size(viewport)
    expect(row(page, "erasures", "job-1")).to_be_visible()
    page.wait_for_timeout(300)
    page.screenshot(path=tmp_path / "page.png", full_page=True)
    assert page.evaluate("document.documentElement.scrollWidth") <= viewport["width"]
    assert page.evaluate(MOST_LINES_OF_A_FIGURE) < 2.5
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert ground == {"light": "rgb(244, 246, 246)", "dark": "rgb(15, 21, 20)"}[scheme]
    for opener in ("Forget…", "Suspend…", "Audit card", "Roll back"):
        page.get_by_role("button", name=opener).first.click()
        dialog = page.get_by_role("dialog")
        expect(dialog).to_be_visible()
        page.screenshot(path=tmp_path / f"{opener.strip('…')}.png")
        box = dialog.bounding_box()
        assert box is not None
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= viewport["width"]
        assert dialog.evaluate("n => n.scrollWidth <= n.clientWidth")
        page.keyboard.press("Escape")
        expect(dialog).to_be_hidden()
    console.close()


# -- its arithmetic


def test_rates_compare_only_replicas_that_are_in_both_looks(page: Page) -> None:
    rate = page.evaluate(
        """async () => {
          const { between, quantile } = await import("/console/traffic.js");
          const replica = (ok, fast, all) => ({
            predictions: { ok, client_error: 0, not_current: 0, error: 0 },
            samples: 0, dropped: 0, latency: [[0.01, fast], [0.1, all], [null, all]],
          });
          const before = { at: 10, replicas: { a: replica(100, 50, 100), b: replica(900, 0, 0) } };
          const now = { at: 14, replicas: { a: replica(140, 70, 140), c: replica(500, 0, 0) } };
          const found = between(before, now);
          return [found.rate, quantile(found.buckets, 0.5), quantile(found.buckets, 1),
            quantile([[0.01, 1], [null, 4]], 0.5), quantile([[0.01, 0], [null, 0]], 0.5)];
        }"""
    )
    assert rate[0] == pytest.approx(10)
    assert rate[1]["at"] == pytest.approx(0.01)
    assert rate[2]["at"] == pytest.approx(0.1)
    assert rate[3] == {"above": 0.01}
    assert rate[4] is None


def test_postures_blindness_and_probes_are_said_in_words(page: Page) -> None:
    said = page.evaluate(
        """async () => {
          const { canaryVerdict, leakVerdict, watchingWords } =
            await import("/console/verdicts.js");
          const none = { quiet: 0, leak: 0, exposed: 0, waiting: 0, failed: 0 };
          const quiet = { evidence_log10: -1, proof_log10: 3, detector_log10: 0, suspicion_log10: 5,
            upper_bound: 0.02, target: 0.02, matches: 200, leaks: 0 };
          const live = (watching, more = {}) => ({ share: 0, leak: quiet, canary: quiet, watching: {
            posture: "canary", shadow_until: null, blind: null, canary_classes: 2,
            canary_classes_forgotten: 1, last_probe: 1, probes: none, ...watching }, ...more });
          const status = { forgotten_by_weights: ["7"] };
          return [
            watchingWords(live({ shadow_until: 1e9 })),
            watchingWords(live({ posture: "shadow", shadow_until: 4e9 }, { share: 0.05 })),
            leakVerdict(status, live({ posture: "off", blind: "ended" })).words,
            leakVerdict(status, live({ posture: "shadow", blind: "no_matches" }, { share: 1 }))
              .word,
            canaryVerdict(live({})).word,
            canaryVerdict(live({ canary_classes_forgotten: 0 })).word,
            canaryVerdict(live({}, { canary: { ...quiet, evidence_log10: 3.4 } })).word,
            canaryVerdict(live({ probes: { ...none, exposed: 1 } })).word,
          ];
        }"""
    )
    assert said == [
        "Watched by probes of canary classes alone; shadowing ended 2001-09-09.",
        "Watched by shadowing 5 % of the requests, until 2096-10-02.",
        "Shadowing has ended by itself and no canary class is probed, so no leak can be seen.",
        "Blind",
        "Quiet",
        "Blind",
        "Proven",
        "Exposed",
    ]
