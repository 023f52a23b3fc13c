"""KoBEST's files: as the hub has them, and as SKT publishes them."""

from pathlib import Path

import pytest

from llm_qa import files
from llm_qa.console import UserError
from llm_qa.data.readers.kobest import FIELDS, TASKS, find_split, read_split, write_json_lines

SHARED = Path(__file__).parents[3].parent / "shared" / "data" / "kobest"
TSV = {
    "BoolQ": 'ID\tText\tQuestion\tAnswer\r\n1\t벽지는 "종이"다.\t벽지인가?\tFALSE\r\n2\t마루다.\t마루인가?\tTrue\r\n',
    "COPA": "ID\tsentence\tquestion\t1\t2\tAnswer\r\n1\t벽지가 들떴다.\t원인\t젖었다.\t말랐다.\t1\r\n",
    "HellaSwag": 'context\tchoice1\tchoice2\tchoice3\tchoice4\tlabel\n칠한다.\t"""풀""을 쓴다."\t둘\t셋\t넷\t3\n',
    "SentiNeg": "ID\tLabel_origin\tText_origin\tLabel\tText\tCategory_neg\r\n1\t0\t나쁘다\t1\t좋다\t1\r\n",
    "WiC": "ID\tTarget\tSENTENCE1\tSENTENCE2\tANSWER\r\n1\t눈\t[눈]이 온다.\t[눈]이 아프다.\tFalse\r\n",
}


@pytest.fixture
def folder(tmp_path):
    for name, text in TSV.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "test.tsv").write_text(text, encoding="utf-8", newline="")
    return tmp_path


def test_the_published_files_are_items_of_the_hubs_form(folder, tmp_path):
    write_json_lines(folder, TASKS, ("test",), tmp_path / "out")
    items = {task: files.read_jsonl(tmp_path / "out" / task / "test.jsonl") for task in TASKS}
    assert all(item.keys() == FIELDS[task] for task, found in items.items() for item in found)
    assert {task: [item["label"] for item in found] for task, found in items.items()} == {
        "boolq": [0, 1],
        "copa": [0],
        "hellaswag": [3],
        "sentineg": [1],
        "wic": [0],
    }
    assert items["boolq"][0]["paragraph"] == '벽지는 "종이"다.'
    assert items["hellaswag"][0]["ending_1"] == '"풀"을 쓴다.'
    assert items["copa"][0] | {"alternative_2": "말랐다.", "premise": "벽지가 들떴다."} == items["copa"][0]
    assert items["sentineg"][0]["sentence"] == "좋다"


@pytest.mark.parametrize(
    ("task", "old", "new", "sentence"),
    [
        ("copa", "\t1\r\n", "\t3\r\n", "line 2: Answer is '3', not a label"),
        ("boolq", "FALSE", "아니요", "line 2: Answer is '아니요', not a label"),
        ("wic", "Target", "Word", "line 2, has no Target, as wic's TSV has it"),
        ("hellaswag", "\t3\n", "\n", "line 2, has no label"),
    ],
)
def test_a_file_of_another_form_is_one_sentence(folder, task, old, new, sentence):
    path = find_split(folder, task, "test")
    path.write_text(path.read_text(encoding="utf-8").replace(old.replace("\r\n", "\n"), new), encoding="utf-8")
    with pytest.raises(UserError, match=sentence):
        read_split(path, task)


def test_a_missing_file_names_both_forms(folder):
    with pytest.raises(UserError, match=r"has no boolq/train.jsonl and no BoolQ/train.tsv"):
        find_split(folder, "boolq", "train")


@pytest.mark.skipif(not SHARED.exists(), reason="no ../shared/data/kobest beside the project")
def test_skts_own_files_are_read_whole():
    counts = {task: len(read_split(find_split(SHARED, task, "test"), task)) for task in TASKS}
    assert counts == {"boolq": 1404, "copa": 1000, "hellaswag": 500, "sentineg": 397, "wic": 1260}
