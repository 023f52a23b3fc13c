"""The page, its twin and its plots from synthetic runs: complete, safe, self-contained, the same every time."""

import html.parser
import json
import re
import shutil
import warnings
import xml.etree.ElementTree as ElementTree

import pytest

from evaluation.fixtures import make_evaluation, make_rows, make_run
from llm_qa import files
from llm_qa.console import UserError
from llm_qa.evaluation.kobest import Choice, compare_tasks
from llm_qa.evaluation.metrics.catalogue import MEASURES
from llm_qa.evaluation.report import plots, plotting
from llm_qa.evaluation.report.escaping import markdown_text, visible
from llm_qa.evaluation.report.loading import load_report
from llm_qa.evaluation.report.original import ORIGINAL_RUNS
from llm_qa.evaluation.report.rendering import final_screen, write_report
from llm_qa.language import ENGLISH, KOREAN, VARIABLE

HOSTILE = [
    "<script>alert('x')</script>",
    "</style><img src=x onerror=alert(1)>",
    "a | b `code` **bold** _it_ [x](javascript:alert(1)) ![y](http://evil.example/p.png)",
    "# 제목\n- 목록\r\n| 표 |\n```\nhttps://evil.example www.evil.example ${x}$",
    "널\x00 벨\x07 대리\ud800 줄\u2028끝",
    'fill: #ffffff; font-family: x; id="y" href="#z" url(#w)',
    "{{ 7 * 7 }} {% raw %} &amp; &lt;b&gt;",
]


@pytest.fixture
def run(tmp_path):
    return make_run(tmp_path / "runs")


def written(runs, out, **options):
    page = write_report(load_report(runs, **options), out)
    return page.read_text(encoding="utf-8"), (out / "report.md").read_text(encoding="utf-8")


class Page(html.parser.HTMLParser):
    """Collects tags and attributes, and checks that what is opened is closed."""

    VOID = ("meta", "br", "link", "img")

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.open, self.text = [], [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def test_page_and_twin_hold_the_whole_story(run, tmp_path):
    page, twin = written([run], tmp_path / "out", samples=4)
    report = load_report([run], samples=4)
    row = report.runs[0].samples["Most improved"][0]
    for text in (page, twin):
        for expected in (
            "The tuned model is better: character F1",
            "마감하자",
            "polyglot-ko-12.8b",
            "8 to 9 GB",
            "17 h",
            "6,440 pairs",
            "P100 16 GB",
            "1m23s",  # total time
            "412 MB",
            "913",
            "LoRA on nf4 (1.5% of parameters)",
            row.question,
            row.tuned,
            "Drawn at random",
            "KorQuAD 1.0",
            "sacrebleu chrF2++",
            "corrected by Holm",
            "ab" * 32,
            "2.13.0",
        ):
            assert expected in text
    assert "max\\_new\\_tokens | 64" in twin
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "answers.csv",
        "answers.xlsx",
        "categories-1.svg",
        "cost.svg",
        "distribution.svg",
        "loss.svg",
        "question-types-1.svg",
        "report.html",
        "report.md",
        "scores.svg",
    ]
    for image in re.findall(r"!\[[^]]*\]\(([^)]*)\)", twin):
        assert (tmp_path / "out" / image).is_file()


def test_the_page_is_one_well_formed_file_without_script_or_request(run, tmp_path):
    other = make_run(tmp_path / "runs", "둘째", seed=3)
    text, _ = written([run, other], tmp_path / "out")
    page = Page(text)
    assert not {"script", "img", "link", "iframe", "object"} & set(page.tags)
    for name, value in page.attributes:
        if name in ("href", "xlink:href", "src", "action", "srcset"):
            assert value.startswith("#"), (name, value)
        assert not name.startswith("on")
    assert not re.search(r"url\((?!#)|@import", text)
    ids = [value for name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    targets = {value[1:] for name, value in page.attributes if name.endswith("href")}
    targets |= set(re.findall(r"url\(#([^)]*)\)", text))
    targets |= {value for name, value in page.attributes if name == "aria-labelledby"}
    assert targets <= set(ids)
    assert "default-src 'none'" in text
    assert "prefers-color-scheme: dark" in text
    assert "@media print" in text


def test_the_same_runs_give_the_same_bytes(run, tmp_path):
    written([run], tmp_path / "one")
    written([run], tmp_path / "two")
    for path in (tmp_path / "one").iterdir():
        if path.suffix == ".xlsx":  # it says when it was written
            continue
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes(), path.name


@pytest.mark.parametrize("hostile", HOSTILE)
def test_answers_are_only_text(tmp_path, hostile):
    run = make_run(tmp_path / "runs")
    clean, clean_twin = written([run], tmp_path / "clean")
    for base in (True, False):
        rows = make_rows(tuned=not base)
        for row in rows:
            row |= {"prediction": hostile, "question": hostile, "context": hostile, "category": hostile}
            row["references"] = [hostile, hostile]
            row["reference_characters"] = [len(hostile)] * 2
        folder = files.evaluation_dir(run, "test", label="base" if base else "tuned")
        scores = json.loads((folder / files.SCORES).read_text(encoding="utf-8"))
        make_evaluation(run, make_rows(tuned=not base), label="base" if base else "tuned")
        # json.dumps keeps a lone surrogate as an escape, as a model's tokenizer may have left it
        (folder / files.PREDICTIONS).write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
        scores["scores"]["groups"]["category"] = {hostile: scores["scores"]["groups"]["category"]["시공"]}
        scores |= {"model": hostile, "data": hostile}
        (folder / files.SCORES).write_text(json.dumps(scores), encoding="utf-8")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        text, twin = written([run], tmp_path / "out")
    page, harmless = Page(text), Page(clean)
    assert set(page.tags) - {"details", "summary"} <= set(harmless.tags)  # a context adds those two
    assert visible(hostile).replace("\n", " ") in "".join(page.text).replace("\n", " ")
    assert not re.search(r"<(?!br>)", twin)
    answers = [line for line in twin.splitlines() if line.startswith("| tuned |")]
    assert len(answers) == len([line for line in clean_twin.splitlines() if line.startswith("| tuned |")]) == 24
    for line in twin.splitlines():
        if line.startswith("| tuned |"):
            assert len(re.findall(r"(?<!\\)\|", line)) == 4
    assert f"{plotting.shorten(hostile)} (4)" in "".join(page.text)  # in the plot, as it is
    for svg in (tmp_path / "out").glob("*.svg"):
        ElementTree.fromstring(svg.read_text(encoding="utf-8"))


def test_line_breaks_of_answers_are_shown(tmp_path):
    run = make_run(tmp_path / "runs")
    for label in (files.TUNED, files.BASE):
        rows = make_rows(tuned=label == files.TUNED)
        texts = {"references": ["하나\n둘", "셋"], "prediction": f"{label}\n다섯"}
        make_evaluation(run, [row | texts for row in rows], label=label)
    text, twin = written([run], tmp_path / "out")
    assert "<li>하나\n둘</li>" in text
    assert ".references li { white-space: pre-line; }" in text, "or HTML would show them as spaces"
    assert '<div class="text" lang="ko">tuned\n다섯</div>' in text
    assert "하나<br>둘" in twin
    assert "tuned<br>다섯" in twin


def test_markdown_text_has_no_live_markup():
    text = markdown_text("[x](http://a.b) ![y](z) `c` *d* _e_ <i> a|b www.a.b me@b.c\n~~f~~")
    assert text == (
        "\\[x\\](http\\://a.b) !\\[y\\](z) \\`c\\` \\*d\\* \\_e\\_ &lt;i&gt; a\\|b www\\.a.b me\\@b.c<br>\\~\\~f\\~\\~"
    )


def test_unknown_figures_are_dashes_and_nothing_crashes(run, tmp_path):
    for name in (files.RECIPE, files.ENVIRONMENT, files.TRAINING, files.LOG):
        (run / name).unlink()
    page, twin = written([run], tmp_path / "out")
    assert "No loss was logged." in page
    assert "| tiny | embedded | – | – | – | – | – | – | – | 6.0 |" in twin
    assert not (tmp_path / "out" / "loss.svg").exists()


def test_odd_values_in_optional_files_are_dashes(run, tmp_path):
    training = {"wall_seconds": None, "peak_memory_bytes": [], "tokens_per_second": float("nan"), "finished": False}
    files.write_json(run / files.TRAINING, training)
    with open(run / files.LOG, "a", encoding="utf-8") as log:
        log.write('{"step": 41, "epoch": 4.1, "loss": NaN}\n{"step": 42}\n{"epoch": 5}\n[]\n')
    page, twin = written([run], tmp_path / "out")
    assert "| tiny | embedded | LoRA on nf4 | CPU | – | – | – | – | – | 6.0 |" in twin
    assert "training had not finished" in page


def test_memory_is_the_worst_rank(run, tmp_path):
    training = files.read_json(run / files.TRAINING) | {"peak_memory_bytes": [9_400_000_000, 9_900_000_000]}
    files.write_json(run / files.TRAINING, training)
    assert "9.9 GB (highest of 2 ranks)" in written([run], tmp_path / "out")[1]


def test_a_run_without_base_is_reported_without_comparison(tmp_path):
    run = make_run(tmp_path / "runs", with_base=False)
    page, twin = written([run], tmp_path / "out")
    for text in (page, twin):
        assert "Its base was not evaluated" in text
        assert f"scripts/evaluate.py --run {run} --base --data data/bundled --split test" in text.replace("\\", "")
    assert "Most improved" not in page
    screen = final_screen(load_report([run]))
    assert re.search(r"Character F1 ↑ +– +0\.\d{3} +– +–", screen)


def test_data_without_categories(run, tmp_path):
    for base in (True, False):
        rows = [row | {"category": ""} for row in make_rows(tuned=not base)]
        make_evaluation(run, rows, label="base" if base else "tuned")
    page, twin = written([run], tmp_path / "out")
    assert ">By category (" not in page + twin
    assert not (tmp_path / "out" / "categories-1.svg").exists()


def test_final_screen(run):
    screen = final_screen(load_report([run]))
    assert "tiny: test split, 12 records, 24 questions" in screen
    assert re.search(r"Character F1 ↑ +0\.\d{3} +0\.\d{3} +\+0\.\d{3} to \+0\.\d{3} +better", screen)
    assert "The tuned model is better" in screen


def test_scores_are_shown_and_not_computed_again(run, tmp_path):
    path = files.evaluation_dir(run, "test") / files.SCORES
    document = files.read_json(path)
    document["scores"]["metrics"]["chrf"]["value"] = 12.3
    files.write_json(path, document)
    assert "12.3" in written([run], tmp_path / "out")[1]


def test_the_original_notebooks_have_three_rows(run, tmp_path):
    twin = written([run], tmp_path / "out")[1]
    assert sum(line.startswith("| original notebooks |") for line in twin.splitlines()) == len(ORIGINAL_RUNS) == 3


# --- refusals: one sentence that names the command ---


def refused(runs, match, **options):
    with pytest.raises(UserError, match=match) as error:
        load_report(runs, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_missing_runs_and_evaluations_are_refused(run, tmp_path):
    refused([], "No run was named")
    refused([tmp_path / "none"], "does not exist")
    refused([run, run], "named twice")
    assert f"python scripts/evaluate.py --run {run} --base --split validation" in refused(
        [run], "no evaluation of the validation split", split="validation"
    )
    (files.evaluation_dir(run, "test", label="base") / files.SCORES).unlink()
    assert "scripts/evaluate.py" in refused([run], r"no scores\.json")
    shutil.rmtree(files.evaluation_dir(run, "test"))
    refused([run], "no evaluation of the test split")


def test_scores_of_other_predictions_are_refused(run):
    folder = files.evaluation_dir(run, "test")
    document = files.read_json(folder / files.SCORES)
    files.write_jsonl(folder / files.PREDICTIONS, make_rows(tuned=True)[:-2])
    assert "scripts/evaluate.py" in refused([run], "is of 12 records, but predictions.jsonl beside it holds 11")
    files.write_json(folder / files.SCORES, {"run": "x"})
    refused([run], "lacks scores")
    files.write_json(folder / files.SCORES, {**document, "generation": 64})
    refused([run], "generation or contamination that is no mapping")
    files.write_text(folder / files.SCORES, "{")
    refused([run], "not a readable JSON")


def test_different_data_is_refused(run, tmp_path):
    other = make_run(tmp_path / "runs", "other")
    make_evaluation(other, make_rows(tuned=False), label="base", data_sha256="cd" * 32)
    refused([other], "cannot be compared")
    make_evaluation(other, make_rows(tuned=True), data_sha256="cd" * 32)
    assert f"--run {other} --base --data data/bundled --split test" in refused([run, other], "cannot be compared")


def test_records_and_new_wordings_are_not_shown_on_one_page(run, tmp_path):
    other = make_run(tmp_path / "runs", "other")
    # With one sha256 too: what was held out counts, whatever the files are.
    make_evaluation(other, make_rows(tuned=True), held_out="phrasings")
    said = refused([run, other], "holds out whole records and that of .* new wordings of trained records")
    assert str(run) in said
    assert str(other) in said
    assert "holds out new wordings of trained records" in refused([other, run], "whole records")
    same = make_run(tmp_path / "runs", "same")
    make_evaluation(same, make_rows(tuned=True), held_out="phrasings")
    assert load_report([other, same]).asked == "test split (trained facts, new wordings)"


def test_different_questions_are_refused(run, tmp_path):
    other = make_run(tmp_path / "runs", "other")
    for base in (True, False):
        make_evaluation(other, make_rows(tuned=not base)[:-2], label="base" if base else "tuned")
    refused([run, other], "not asked the same questions")


def test_different_generation_settings_are_refused(run):
    path = files.evaluation_dir(run, "test", label="base") / files.SCORES
    document = files.read_json(path)
    document["generation"] |= {"max_new_tokens": 128, "batch_size": 4}
    files.write_json(path, document)
    refused([run], r"different settings \(max_new_tokens 128 and 64\)")


def test_an_out_that_is_a_file_is_refused(run, tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="is a file"):
        write_report(load_report([run]), tmp_path / "file")


# --- plots ---


def test_plain_colours_are_unique_so_that_each_has_its_variable():
    light = [colour for colour, _ in plotting.PALETTE.values()]
    assert len(set(light)) == len(light)


def test_inline_plots_carry_no_fixed_colour_and_korean_stays_text(run, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # "Glyph missing from font" would be one
        written([run], tmp_path / "out")
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    drawings = re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL)
    assert len(drawings) == 6
    assert any("마감하자 (3)" in drawing for drawing in drawings)
    for drawing in drawings:
        assert not re.search(r"(fill|stroke): ?#", drawing)
        assert "<style" not in drawing
    plain = (tmp_path / "out" / "categories-1.svg").read_text(encoding="utf-8")
    assert "마감하자 (3)" in plain
    assert "Malgun Gothic" in plain
    assert "dc:date" not in plain


def test_names_that_matplotlib_would_treat_specially(tmp_path):
    runs = [make_run(tmp_path / "runs", name, seed=i) for i, name in enumerate(["_hidden", r"$\frac$ --> <b>", "나"])]
    page, _ = written(runs, tmp_path / "out")
    loss = (tmp_path / "out" / "loss.svg").read_text(encoding="utf-8")
    texts = [element.text for element in ElementTree.fromstring(loss).iter() if element.tag.endswith("text")]
    assert {"\u200b_hidden", r"$\frac$ --> <b>", "나"} <= set(texts)
    assert r"$\frac$ --&gt; &lt;b&gt;" in page


def test_a_step_logged_twice_counts_once_the_later():
    log = [{"step": 1, "epoch": 0.5, "loss": 3.0}, {"step": 2, "epoch": 1.0, "loss": 2.0}]
    log += [{"step": 2, "epoch": 1.0, "loss": 1.5}, {"step": 2, "epoch": 1.0, "validation_loss": 1.7}]
    assert plots.training_curve(log, "loss") == [(0.5, 3.0), (1.0, 1.5)]
    assert plots.training_curve(log, "validation_loss") == [(1.0, 1.7)]


def test_many_runs_and_long_names(tmp_path):
    runs = [make_run(tmp_path / "runs", f"아주긴이름의실험폴더그리고더-{i}" * 3, seed=i) for i in range(8)]
    page, _ = written(runs, tmp_path / "out")
    Page(page)
    assert plotting.shorten("가" * 40, 10) == "가가가가…"


# --- what stands beside the runs ---


def test_copied_training_answers_and_closeness_are_shown(run, tmp_path):
    rows = make_rows(tuned=True)
    for row in rows:
        row["closest_training"] = {"question": 0.9 if row["id"] == "TRAIN_000" else 0.1, "answer": 0.2}
    make_evaluation(run, rows)
    path = files.evaluation_dir(run, "test") / files.SCORES
    counts = {"similarity_from": 0.8, "close_questions": 2, "close_answers": 0, "close_records": 1}
    files.write_json(path, files.read_json(path) | {"contamination": counts})
    copied = [row | {"prediction": row["references"][0], "reference_bits": [None, None]} for row in rows]
    make_evaluation(run, copied, label="nearest")
    page, twin = written([run], tmp_path / "out")
    assert "| 1 | nearest training answer | 1.000 (1.000 to 1.000) |" in twin
    assert "| tiny | 2 of 24 | 0 of 24 | 1 of 12 |" in twin
    assert "close to a training text" in page


def test_kobest_stands_beside_what_is_published(run, tmp_path):
    without = written([run], tmp_path / "without")[1]
    right = [0, 1] * 20
    flawed = [right[:30] + [1 - label for label in right[30:]], right]
    copa = [[Choice(*pair, None) for pair in zip(right, told, strict=True)] for told in flawed]
    base, tuned = ({"copa": choices, "wic": [Choice(0, 0, None)] * 4} for choices in copa)
    tasks = compare_tasks(base, tuned)
    kobest = {"model": "EleutherAI/polyglot-ko-1.3b", "num_fewshot": 5, "lm_eval": "0.4.13", "tasks": tasks}
    path = files.evaluation_dir(run, files.KOBEST) / files.SCORES
    files.write_json(path, kobest)
    page, twin = written([run], tmp_path / "out")
    span = r"\(0\.\d{4} to 0\.\d{4}\)"
    assert re.search(
        rf"\| copa, macro F1 ↑ \| 0\.7500 {span} \| 1\.0000 \(1\.0000 to 1\.0000\) \| \+0\.2500 \(\+0\.\d{{4}} to "
        r"\+0\.\d{4}\) \| 0\.0\d\d \| better \| 0\.7193 \| 40 \|",
        twin,
    )
    assert re.search(rf"\| copa, accuracy ↑ \| 0\.7500 {span} .* \| – \| – \| – \| 40 \|", twin)
    assert re.search(r"\| wic, macro F1 ↑ .* \| 1\.000 \| too few records \(9 needed here\) \| – \| 4 \|", twin)
    for text in (page, twin):
        assert "Llama-2-Ko model card" in text
    counts = [int(re.search(r"corrected for all (\d+) tests", text)[1]) for text in (without, twin)]
    assert counts[1] == counts[0] + 2, "its tests are corrected with the page's others"

    kobest["tasks"]["copa"] = {"records": 40, "base": {"f1": 0.5}, "tuned": {"f1": 0.6}}
    files.write_json(path, kobest)
    assert "evaluate_kobest.py --run" in refused([run], "an older version wrote it")


def test_a_measure_that_nobody_took_is_named_and_not_a_row_of_dashes(run, tmp_path):
    page, twin = written([run], tmp_path / "out")
    assert "Not measured here: Embedding cosine." in page
    assert "| Embedding cosine" not in twin
    for label in ("tuned", "base"):
        rows = [row | {"embedding_cosine": 0.5} for row in make_rows(tuned=label == "tuned")]
        make_evaluation(run, rows, label=label)
    assert "| Embedding cosine ↑ | 0.500" in written([run], tmp_path / "out")[1]


def test_models_are_compared_with_each_other(run, tmp_path):
    other = make_run(tmp_path / "runs", "둘째", seed=3)
    page, twin = written([run, other], tmp_path / "out")
    pairwise = next(line for line in twin.splitlines() if line.startswith(r"| \#1") and r"| \#2" in line)
    assert re.search(r"\| 0\.\d{3} \|", pairwise), "a corrected p"
    assert "Model against model" in page
    assert "Model against model" not in written([run], tmp_path / "one")[0]


def test_gpu_hours_are_of_all_processes(run, tmp_path):
    training = files.read_json(run / files.TRAINING) | {"wall_seconds": 5400, "processes": 4}
    files.write_json(run / files.TRAINING, training)
    environment = files.read_json(run / files.ENVIRONMENT) | {"gpus": ["T4"] * 4}
    files.write_json(run / files.ENVIRONMENT, environment)
    assert "| 1h30m | 6.00 |" in written([run], tmp_path / "out")[1]
    files.write_json(run / files.TRAINING, training | {"energy_joules": 4.32e6})
    assert "| 1h30m | 6.00, 1.20 kWh |" in written([run], tmp_path / "out")[1]


def test_an_older_evaluation_without_a_measure_is_scored_with_those_of_today(run, capsys):
    path = files.evaluation_dir(run, "test") / files.SCORES
    document = files.read_json(path)
    del document["scores"]["metrics"]["rougeL"]
    files.write_json(path, document)
    tuned = load_report([run]).runs[0].tuned
    assert f"an earlier version scored {path.parent}: scored again, with today's measures" in capsys.readouterr().out
    assert MEASURES.keys() <= tuned.scores["metrics"].keys()
    assert tuned.scores["metrics"]["rougeL"]["value"] > 0


def test_an_evaluation_that_took_records_for_independent_is_scored_again_over_groups(run, tmp_path, capsys):
    """As older versions wrote them: no `group` in the rows, no `record_groups`; two records share a text."""
    for label in ("tuned", "base"):
        folder = files.evaluation_dir(run, "test", label=label)
        rows = files.read_jsonl(folder / files.PREDICTIONS)
        rows[0]["references"][0] = rows[2]["references"][0]
        files.write_jsonl(folder / files.PREDICTIONS, [{k: v for k, v in row.items() if k != "group"} for row in rows])
        document = files.read_json(folder / files.SCORES)
        del document["scores"]["record_groups"]
        files.write_json(folder / files.SCORES, document)
    assert "12 records in 11 groups, 24 questions" in written([run], tmp_path / "out")[1]
    assert "scored again, with today's measures and over groups of records" in capsys.readouterr().out


def test_a_thousand_predictions_are_under_two_megabytes(run, tmp_path):
    for label in ("tuned", "base"):
        rows = [
            row | {"id": f"{row['id']}-{i:02d}", "prediction": row["prediction"] + " 그리고 잘 말립니다." * 10}
            for i in range(42)
            for row in make_rows(tuned=label == "tuned")
        ]
        make_evaluation(run, rows, label=label)
    page, _ = written([run], tmp_path / "out", resamples=50)
    assert "504 records in 12 groups, 1,008 questions" in page
    assert len(page.encode()) < 2_000_000


def test_the_page_begins_with_what_was_found(run, tmp_path):
    page, twin = written([run], tmp_path / "out")
    assert re.search(
        r'<p class="headline">tiny reaches 0\.\d{3} character F1, clearly better than its base\.</p>', page
    )
    assert twin.splitlines()[2].startswith("**Better than its base, and these measures find no fault in its answers")
    assert "tiny reaches" in twin.split("What to do next:")[1].split("| Model |")[0]

    rows = make_rows(tuned=True)
    copied = [row | {"prediction": row["references"][0], "reference_bits": [None, None]} for row in rows]
    make_evaluation(run, copied, label="nearest")
    assert "Copying the nearest training answer is clearly better still (1.000)." in written([run], tmp_path / "out")[1]

    idle = make_run(tmp_path / "runs", "idle")
    make_evaluation(idle, make_rows(tuned=False))
    twin = written([idle], tmp_path / "out")[1]
    assert "; the test shows it to be better than none of the others" in twin
    assert "tiny is the best tuned model" in written([idle, run], tmp_path / "out")[1]


def test_a_score_over_fewer_records_says_so(run, tmp_path):
    assert "of 12 groups" not in written([run], tmp_path / "out")[1]
    rows = make_rows(tuned=True)
    for row in rows[:2]:
        row["reference_bits"] = [None, None]  # the first record's, longer than the model's context
    make_evaluation(run, rows)
    twin = written([run], tmp_path / "out")[1]
    ranking = next(line for line in twin.splitlines() if line.startswith("| 1 | tiny |"))
    assert ranking.count(", 11 of 12 groups)") == 1
    scores = next(line for line in twin.splitlines() if line.startswith("| Bits per character"))
    assert scores.count(", 11 of 12 groups)") == 2, "tuned and the difference, not the base"
    assert "4 of 5 groups" in twin, "and in its category"


def test_what_is_gained_without_close_records_is_shown(run, tmp_path):
    for label in ("tuned", "base"):
        rows = make_rows(tuned=label == "tuned")
        for row in rows:
            row["closest_training"] = {"question": 0.9 if row["id"] == "TRAIN_000" else 0.1, "answer": 0.2}
        make_evaluation(run, rows, label=label)
        path = files.evaluation_dir(run, "test", label=label) / files.SCORES
        counts = {"similarity_from": 0.8, "close_questions": 2, "close_answers": 0, "close_records": 1}
        files.write_json(path, files.read_json(path) | {"contamination": counts})
    line = next(x for x in written([run], tmp_path / "out")[1].splitlines() if x.startswith("| tiny | 2 of 24"))
    gain, without = re.findall(r"\| \+(0\.\d{3}) \(\+0\.\d{3} to \+0\.\d{3}\)", line)
    assert gain != without
    assert line.endswith("| 11 |")


def test_the_language_changes_words_alone(run, tmp_path, monkeypatch):
    """The same plots, tables, next steps and figures in both."""
    pages = {}
    for language in (ENGLISH, KOREAN):
        monkeypatch.setenv(VARIABLE, language)
        pages[language] = written([run], tmp_path / language)[0]
    for tag in ("<svg", "<tr", "<td", "<li", "<details", "<text"):
        assert pages[KOREAN].count(tag) == pages[ENGLISH].count(tag), tag
    figures = [re.findall(r">\s*([+−-]?\d[\d.,]*%?)\s*<", page) for page in pages.values()]
    assert figures[0] == figures[1]
    assert len(figures[0]) > 50
    names = [sorted(path.name for path in (tmp_path / language).iterdir()) for language in pages]
    assert names[0] == names[1]


def test_the_page_is_korean_where_korean_is_chosen(run, tmp_path, monkeypatch):
    monkeypatch.setenv(VARIABLE, KOREAN)
    page, twin = written([run], tmp_path / "out")
    assert '<html lang="ko">' in page
    assert "기반 모델보다 낫습니다. 이 지표로는 답에서 문제가 보이지 않습니다." in page
    assert "**기반 모델보다 낫습니다." in twin
    headings = re.findall(r"<h[23][^>]*>([^<]*)</h[23]>", page)
    assert len(headings) > 7
    assert not [heading for heading in headings if not re.search("[가-힣]", heading)]
    columns = re.findall(r'<th scope="col"[^>]*>([^<]*)</th>', page)
    known = {"#", "chrF++\u00a0↑", "ROUGE-L\u00a0↑"}
    assert not [column for column in columns if not re.search("[가-힣]", column) and column not in known]
    assert "학습한 모델이 낫습니다" in final_screen(load_report([run]))
