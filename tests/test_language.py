"""Every sentence that the code says stands in the Korean tables, with the same placeholders, and nothing else does."""

import argparse
import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from string import Formatter

import jinja2
import pytest

from llm_qa import language
from llm_qa.console import ArgumentParser, UserError, counted, positive_int, whole_number
from llm_qa.language import ENGLISH, KOREAN, TABLES, VARIABLE, choose_language, tr

SOURCES = sorted([*Path("llm_qa").rglob("*.py"), *Path("scripts").glob("*.py")])
TEMPLATES = sorted(Path("llm_qa").rglob("*.j2"))
# Their own text is English: developers of the project run them, and what they say of others goes through `tr` there.
FOR_DEVELOPERS = ("bench.py", "bench_scaling.py", "pretrain_embedded.py")
HANGUL = re.compile("[가-힣]")
ERRORS_IN_ENGLISH = frozenset(  # parts with errors that have no Korean sentence yet; a part leaves when it has none
    {
        "llm_qa/benchmark",
        "llm_qa/config",
        "llm_qa/data",
        "llm_qa/evaluation",
        "llm_qa/export",
        "llm_qa/inference",
        "llm_qa/migrations.py",
        "llm_qa/serving",
        "llm_qa/tuning",
        *(f"scripts/{name}" for name in FOR_DEVELOPERS),
    }
)


def literals(node: ast.expr) -> list[str]:
    """The texts that an expression may be; [] for what is known when it runs."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return [node.value]
    return [*literals(node.body), *literals(node.orelse)] if isinstance(node, ast.IfExp) else []


def name_of(call: ast.Call) -> str:
    return call.func.id if isinstance(call.func, ast.Name) else getattr(call.func, "attr", "")


def said(tree: ast.AST) -> tuple[set[str], set[str], list[str]]:
    """What a source says through `tr` and in the help of its flags, its docstring, and faults in the calls."""
    must: set[str] = set()
    may: set[str] = {ast.get_docstring(tree, clean=False) or ""} if isinstance(tree, ast.Module) else set()
    faults = []
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        name, named = name_of(call), {keyword.arg: keyword.value for keyword in call.keywords}
        if name in ("tr", "later") and call.args:
            texts = literals(call.args[0])
            must |= set(texts)
            if isinstance(call.args[0], ast.JoinedStr | ast.BinOp):
                faults.append(f"{ast.unparse(call)}: a text put together has no entry; give values as keywords")
            faults += [
                f"{text!r} is given {', '.join(map(str, named)) or 'nothing'}"
                for text in texts
                if name == "tr" and None not in named and {p.split(".")[0] for p, _ in placeholders(text)} != set(named)
            ]
        elif name == "get" and call.args and isinstance(call.args[0], ast.Call) and name_of(call.args[0]) == "tr":
            faults.append(f"{ast.unparse(call)}: a key of data is the same in every language")
        elif name == "counted" and len(call.args) == 2:
            must |= set(literals(call.args[1]))
        elif name == "progress":
            must |= {text for key in ("what", "unit") if key in named for text in literals(named[key])}
        elif name == "add_argument" and "help" in named:
            must |= set(literals(named["help"]))
            if isinstance(named["help"], ast.JoinedStr | ast.BinOp):
                faults.append(f"{ast.unparse(call)}: a help put together has no entry; give values as keywords of tr")
        elif name == "add_argument_group":
            must |= set(literals(call.args[0]))
        elif name == "ArgumentParser" and "usage" in named:
            must |= set(literals(named["usage"]))
    keys = [node.slice for node in ast.walk(tree) if isinstance(node, ast.Subscript)]
    translated = [key for key in keys if isinstance(key, ast.Call) and name_of(key) == "tr"]
    faults += [f"{ast.unparse(key)}: a key of data is the same in every language" for key in translated]
    return must, may, faults


def placeholders(text: str) -> set[tuple[str, str]]:
    """{('count', ',')} of '{count:,} questions'; of argparse's templates the whole %(value)r."""
    fields = {(name, form) for _, name, form, _ in Formatter().parse(text) if name} if "{" in text else set()
    return fields | {("%", match) for match in re.findall(r"%(?:\(\w+\))?[sr]", text)}


def source_texts() -> tuple[set[str], set[str], list[str]]:
    must: set[str] = set()
    may: set[str] = set()
    faults: list[str] = []
    for path in SOURCES:
        if path.name in FOR_DEVELOPERS:
            continue
        of_file = said(ast.parse(path.read_text(encoding="utf-8")))
        must |= of_file[0] | (of_file[1] if path.parent.name == "scripts" else set())  # which --help shows
        may |= of_file[1]
        faults += [f"{path}: {fault}" for fault in of_file[2]]
    for path in TEMPLATES:
        tree = jinja2.Environment(extensions=["jinja2.ext.do"]).parse(path.read_text(encoding="utf-8"))
        for call in tree.find_all(jinja2.nodes.Call):
            if isinstance(call.node, jinja2.nodes.Name) and call.node.name == "tr":
                texts = {
                    const.value
                    for const in [call.args[0], *call.args[0].find_all(jinja2.nodes.Const)][:1]
                    if isinstance(const, jinja2.nodes.Const)
                }
                must |= texts
                given = {keyword.key for keyword in call.kwargs}
                faults += [
                    f"{path}: {text!r} is given {given}"
                    for text in texts
                    if {p for p, _ in placeholders(text)} != given
                ]
    return must, may, faults


def test_every_sentence_has_a_korean_one_and_every_entry_a_sentence():
    must, may, faults = source_texts()
    assert not faults, "\n".join(faults)
    entries = language.korean().keys()
    missing = sorted(must - entries)
    assert not missing, "missing in llm_qa/korean:\n" + "\n".join(json.dumps(text) for text in missing)
    unused = sorted(entries - must - may)
    assert not unused, "said nowhere:\n" + "\n".join(json.dumps(text, ensure_ascii=False) for text in unused)


def untranslated_errors(tree: ast.AST) -> list[str]:
    """The UserErrors whose words do not go through `tr`; those that pass on a text alone, str(error), are not meant."""

    def words(node: ast.AST) -> bool:
        if isinstance(node, ast.Call) and name_of(node) == "tr":
            return False
        if isinstance(node, ast.Constant):
            return isinstance(node.value, str) and bool(re.search("[A-Za-z]{2}", node.value))
        return any(map(words, ast.iter_child_nodes(node)))

    calls = (node for node in ast.walk(tree) if isinstance(node, ast.Call) and name_of(node) == "UserError")
    return [ast.unparse(call) for call in calls if any(map(words, call.args))]


def part_of(path: Path) -> str:
    """llm_qa/data of llm_qa/data/readers/xlsx.py, llm_qa/files.py of itself."""
    return "/".join(path.parts[:2])


def test_every_error_of_the_translated_parts_goes_through_the_tables():
    english: dict[str, list[str]] = {}
    for path in SOURCES:
        if errors := untranslated_errors(ast.parse(path.read_text(encoding="utf-8"))):
            english.setdefault(part_of(path), []).extend(f"{path}: {error}" for error in errors)
    new = [error for part, errors in english.items() if part not in ERRORS_IN_ENGLISH for error in errors]
    assert not new, "say it by tr(...):\n" + "\n".join(new)
    assert english.keys() >= ERRORS_IN_ENGLISH, f"translated now: {ERRORS_IN_ENGLISH - english.keys()}"


def test_errors_in_english_alone_are_found():
    source = 'UserError(tr("ab {x}", x=1)); UserError(str(error)); UserError(f"ab {x}"); UserError(tr("ab") + "cd")'
    assert untranslated_errors(ast.parse(source)) == ["UserError(f'ab {x}')", "UserError(tr('ab') + 'cd')"]


def test_a_command_refuses_bad_input_in_korean(tmp_path):
    command = [sys.executable, "scripts/evaluate.py", "--run", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", env={**os.environ, VARIABLE: KOREAN})
    assert done.returncode == 2
    assert done.stderr.startswith(f"오류: {tmp_path}: recipe.yaml 파일이 없어 실행 폴더가 아닙니다. --run에 ")


def test_both_languages_take_the_same_values():
    for english, korean in language.korean().items():
        assert placeholders(english) == placeholders(korean), english
        words = "".join(text for text, *_ in Formatter().parse(korean)) if "{" in korean else korean
        assert HANGUL.search(words) or not re.search("[A-Za-z]", words), english
        mostly = len(re.findall("[a-zA-Z]", english)) > len(HANGUL.findall(english))  # it may name a Korean column
        assert mostly or not HANGUL.search(english), english


@pytest.mark.parametrize("path", sorted(TABLES.glob("*.json")), ids=lambda path: path.stem)
def test_a_table_is_sorted_and_says_nothing_twice(path):
    others = {key for other in TABLES.glob("*.json") if other != path for key in json.loads(other.read_text("utf-8"))}
    text = path.read_text(encoding="utf-8")
    keys = [key for key, _ in json.loads(text, object_pairs_hook=list)]
    assert keys == sorted(set(keys)), "sort it: python tests/test_language.py"
    assert not others & set(keys), "stands in another table too"
    assert text == as_table(json.loads(text)), "write it: python tests/test_language.py"


def as_table(entries: dict[str, str]) -> str:
    return json.dumps(dict(sorted(entries.items())), ensure_ascii=False, indent=1) + "\n"


def test_the_scan_finds_what_is_said_and_what_cannot_be_translated():
    must, _, faults = said(
        ast.parse(
            'tr("{a} b" if x else "{a} c", a=1); later("d"); tr(f"{e}"); tr("{f}", g=1); counted(2, "h"); x[tr("i")]'
        )
    )
    assert must == {"{a} b", "{a} c", "d", "{f}", "h", "i"}
    assert [fault.split(":")[0] for fault in faults] == ["tr(f'{e}')", "'{f}' is given g", "tr('i')"]


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"LANG": "ko_KR.UTF-8"}, KOREAN),
        ({"LANG": "en_US.UTF-8", "LC_MESSAGES": "ko_KR.UTF-8"}, KOREAN),
        ({"LANG": "ko_KR.UTF-8", "LC_ALL": "C"}, ENGLISH),
        ({"LANG": "ko_KR.UTF-8", VARIABLE: "en"}, ENGLISH),
        ({"LANG": "de_DE.UTF-8"}, ENGLISH),
        ({"LANG": "C", VARIABLE: "fr"}, ENGLISH),
        ({}, ENGLISH),
    ],
)
def test_the_language_is_the_chosen_one_or_the_locales(monkeypatch, variables, expected):
    for name in (VARIABLE, *language.LOCALE):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert language.language() == expected


@pytest.mark.parametrize("words", [["--lang", "ko"], ["--lang=ko"], ["x", "--lang", "ko", "--seed", "-1"]])
def test_lang_is_taken_before_the_flags_are_parsed(words):
    choose_language(words)
    assert language.language() == KOREAN


def test_what_is_no_language_changes_nothing():
    choose_language(["--language", "ko", "--lang", "fr", "--lang"])
    assert language.language() == ENGLISH


def test_mistakes_in_flags_are_said_in_the_language_that_the_same_flags_choose(monkeypatch):
    parser = ArgumentParser(prog="x")
    parser.add_argument("--seed", type=whole_number)
    parser.add_argument("--run", required=True)
    parser.add_argument("--how", choices=("a", "b"))
    for words, korean in (
        (["--seed", "-1"], "--seed: -1은(는) 0 이상의 정수가 아닙니다 (플래그 목록: --help)."),
        ([], "필요한 인수가 없습니다: --run (플래그 목록: --help)."),
        (["--run"], "--run: 값이 하나 필요합니다 (플래그 목록: --help)."),
        (["--how", "c"], "--how: 고를 수 없는 값입니다: 'c'"),
        (["--run", "x", "--no"], "알 수 없는 인수입니다: --no (플래그 목록: --help)."),
    ):
        choose_language([*words, "--lang", "ko"])
        with pytest.raises(UserError) as error:
            parser.parse_args([*words, "--lang", "ko"])
        assert str(error.value).startswith(korean)
    with pytest.raises(UserError, match="--lang: .*'fr'"):
        parser.parse_args(["--run", "x", "--lang", "fr"])
    assert vars(parser.parse_args(["--run", "x", "--lang", "en"])).keys() == {"seed", "run", "how"}
    assert language.language() == ENGLISH


def test_help_is_in_the_chosen_language(monkeypatch):
    parser = ArgumentParser(prog="x")
    assert "language of what is shown" in parser.format_help()
    monkeypatch.setenv(VARIABLE, KOREAN)
    said = parser.format_help()
    assert all(
        text in said for text in ("사용법: x", "옵션:", "이 도움말을 보여 주고 끝냅니다", "화면과 보고서의 언어")
    )


def test_counts_have_no_plural_in_korean(monkeypatch):
    monkeypatch.setenv(VARIABLE, KOREAN)
    assert counted(2000, "sequence") == "시퀀스 2,000개"


def test_a_command_speaks_the_locales_language_and_so_do_the_commands_that_it_starts():
    body = "import os, sys\nfrom llm_qa.console import *\ndef main():\n    if sys.argv[1:]: raise UserError('값')\n"
    body += "    os.system(f'{sys.executable} -c \"from llm_qa.language import language; print(language())\"')\n"
    body += "run_script(lambda: (ArgumentParser(allow_abbrev=False).parse_known_args(), main())[1])"
    environment = {key: value for key, value in os.environ.items() if key not in (VARIABLE, *language.LOCALE)}
    for flags, more, output in (
        (["--lang", "ko"], {}, "오류: 값\n"),
        (["x"], {"LANG": "ko_KR.UTF-8"}, "오류: 값\n"),
        (["x"], {"LANG": "C"}, "error: 값\n"),
        ([], {VARIABLE: "ko"}, "ko\n"),
    ):
        command = [sys.executable, "-c", body, *flags]
        done = subprocess.run(command, capture_output=True, encoding="utf-8", env={**environment, **more})
        assert done.stdout + done.stderr == output


def test_a_sentence_without_entry_stays_english(monkeypatch):
    monkeypatch.setenv(VARIABLE, KOREAN)
    sentence = "a library's own {word}"
    assert tr(sentence) == sentence
    with pytest.raises(argparse.ArgumentTypeError, match="0은\\(는\\) 1 이상의 정수가 아닙니다"):
        positive_int("0")


if __name__ == "__main__":  # writes the tables as the test wants them
    for table in TABLES.glob("*.json"):
        table.write_text(as_table(json.loads(table.read_text("utf-8"))), encoding="utf-8")
