"""The report in a real headless Chromium: nothing that a model, a question or a category says is run or fetched."""

import re
import shutil
import subprocess

import pytest

from evaluation.fixtures import make_evaluation, make_rows, make_run
from llm_qa.evaluation.report.loading import load_report
from llm_qa.evaluation.report.rendering import write_report

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")

RAN = "code-of-an-answer-ran"
MARK = f"document.documentElement.setAttribute('data-ran','{RAN}')"
ATTACKS = [
    f"<script>{MARK}</script>",
    f'"><img src=x onerror="{MARK}">',
    f'</td></table></style></title></textarea><svg onload="{MARK}"></svg><script>{MARK}</script>',
    f'<details open ontoggle="{MARK}"><iframe srcdoc="<script>parent.{MARK}</script>"></iframe>',
    f"' autofocus tabindex=0 onfocus=\"{MARK}\" x='",
    f"&lt;script&gt;{MARK}&lt;/script&gt; {{{{ 7 * 7 }}}}",
    f"]]><script>{MARK}</script>",
]


def opened(page, profile) -> str:
    """The page as Chromium has it after its scripts and events, as HTML."""
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--virtual-time-budget=3000"]
    command = [CHROMIUM, *flags, f"--user-data-dir={profile}", "--dump-dom", page.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, encoding="utf-8", timeout=180, check=True).stdout


def ran(dom: str) -> bool:
    """True where code of an answer has left its mark on the page's root."""
    return "data-ran" in re.search(r"<html\b[^>]*>", dom)[0]


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """(the report of a run in which every text is an attack, the same without its content security policy)."""
    folder = tmp_path_factory.mktemp("report")
    run = make_run(folder / "runs")
    for base in (True, False):
        rows = make_rows(tuned=not base)
        for number, row in enumerate(rows):
            attack = ATTACKS[number % len(ATTACKS)]
            row |= dict.fromkeys(("prediction", "question", "context"), f"{attack} {number}")
            row |= {"category": ATTACKS[number // 8], "references": [attack], "reference_bits": [9.0]}
            row["reference_characters"] = [len(attack)]
        make_evaluation(run, rows, label="base" if base else "tuned")
    page = write_report(load_report([run]), folder / "out")
    text = page.read_text(encoding="utf-8")
    bare, removed = re.subn(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", text)
    assert removed == 1
    unguarded = page.with_name("unguarded.html")
    unguarded.write_text(bare, encoding="utf-8")
    return page, unguarded


def test_the_attacks_run_where_they_are_not_escaped(tmp_path):
    for number, attack in enumerate((ATTACKS[0], ATTACKS[1], ATTACKS[2])):
        page = tmp_path / f"{number}.html"
        page.write_text(f'<table><tr><td><i title="{attack}">{attack}</i></td></tr></table>', encoding="utf-8")
        assert ran(opened(page, tmp_path / "profile")), attack


@pytest.mark.parametrize("guarded", [True, False])
def test_no_script_in_an_answer_runs(pages, guarded, tmp_path):
    """Without the policy that forbids all scripts, too: escaping alone has to hold."""
    dom = opened(pages[0] if guarded else pages[1], tmp_path / "profile")
    assert not ran(dom)
    assert dom.count(RAN) >= len(ATTACKS), "the attacks are on the page, as text"
    assert not re.search(r"<(script|img|iframe|object|embed)\b", dom)
    assert "{{ 7 * 7 }}" in dom
