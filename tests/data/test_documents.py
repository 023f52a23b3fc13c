"""Documents are cut at headings and paragraphs, within the length, and lose no word."""

import unicodedata

import pytest

from llm_qa.console import UserError
from llm_qa.data.documents import Passage, cut, read_documents
from llm_qa.data.preparation import prepare, prepared_folder
from llm_qa.data.preparation_options import PreparationOptions
from llm_qa.data.records import QARecord
from llm_qa.data.references import References, Retrieval, before, named

GUIDE = """\
머리말입니다.

# 벽지 #

## 들뜸

첫 문단.

둘째 문단.
```sh
# 설명
```
## 얼룩
지웁니다.
# 마루
닦습니다.
"""


def test_a_passage_is_of_one_section_after_its_headings():
    assert list(cut(GUIDE, 100, headings=True)) == [
        "머리말입니다.",
        "벽지 > 들뜸\n첫 문단.\n둘째 문단.\n```sh\n# 설명\n```",
        "벽지 > 얼룩\n지웁니다.",
        "마루\n닦습니다.",
    ]
    assert next(cut("# 번호\n글", 100, headings=False)) == "# 번호\n글"


@pytest.mark.parametrize("most", [50, 71, 400])
def test_no_passage_is_too_long_and_no_word_is_lost(most):
    sentence = "벽지가 들뜨는 이유는 습기와 풀의 부족, 그리고 바탕면의 먼지 때문입니다. "
    title = ("아주 긴 제목 " * 9).strip()
    text = f"# {title}\n" + "\n\n".join([sentence * 9, "끊을데없는글자" * 40, "짧은 문단."])
    passages = list(cut(text, most, headings=True))
    assert max(map(len, passages)) <= most
    assert len(passages) > 2
    assert {passage.partition("\n")[0] for passage in passages} == {title[: most // 2]}
    inside = "".join("".join(passage.partition("\n")[2] for passage in passages).split())
    assert "".join((sentence * 9).split()) in inside
    assert "끊을데없는글자" * 40 in inside


def test_texts_are_nfc_and_the_same_passage_is_kept_once(tmp_path):
    (tmp_path / "a.md").write_text(unicodedata.normalize("NFD", "결로가 생깁니다."), encoding="utf-8")
    (tmp_path / "b.TXT").write_text("결로가 생깁니다.\r\n\r\n", encoding="utf-16")
    (tmp_path / ".hidden").mkdir()
    (tmp_path / ".hidden" / "c.txt").write_text("안 읽습니다.", encoding="utf-8")
    passages, accounts = read_documents(tmp_path, 400)
    assert passages == [Passage("a.md#1", "a.md", "결로가 생깁니다.")]
    assert [(one["file"], one["passages"]) for one in accounts] == [("a.md", 1), ("b.TXT", 0)]


def test_passages_are_found_beside_records_and_are_never_of_a_record_s_group():
    records = [
        QARecord("1", ("벽지가 왜 떠요?",), ("습기 때문입니다.",)),
        QARecord("2", ("문은요?",), ("나무입니다.",)),
    ]
    passages = [
        Passage("a.md#1", "a.md", "벽지가 뜨는 것은 습기 때문입니다."),
        Passage("b.md#1", "b.md", "마루를 닦습니다."),
    ]
    index = References(records, Retrieval(3, 0.0, 1), passages)
    for found in (
        index.drawn([records[0]], "벽지가 왜 떠요?", 0),
        index.nearest("벽지가 왜 떠요?", 3, beside=[records[0]]),
    ):
        assert {reference.id for reference in found} == {"2", "a.md#1", "b.md#1"}
    found = index.nearest("마루는 어떻게 닦나요?", 2)
    assert found[0] == passages[1]
    context = before(found, "")
    assert context.endswith("참고 자료 (b.md): 마루를 닦습니다.")
    assert named(found, context)[0] == "b.md"
    assert named(found, context[-30:]) == ["b.md"], "what was cut off is not named"


def test_other_documents_are_other_data_and_data_without_them_stay_the_same(tmp_path, monkeypatch):
    monkeypatch.setenv("LLM_QA_DATA", str(tmp_path / "data"))
    (tmp_path / "raw.csv").write_text("질문,답변\n" + "".join(f"{i}번은 뭔가요?,{i}번 답\n" for i in range(20)))
    (tmp_path / "field").mkdir()
    folders = []
    for text in ("하나.", "둘."):
        (tmp_path / "field" / "a.txt").write_text(text, encoding="utf-8")
        options = PreparationOptions(documents=str(tmp_path / "field"))
        folders.append(prepared_folder([str(tmp_path / "raw.csv")], options))
    assert folders[0] != folders[1]
    assert "documents" not in prepare([tmp_path / "raw.csv"], tmp_path / "plain", PreparationOptions())["options"]
    for bad in (PreparationOptions(passage_characters=100), PreparationOptions(documents="x", passage_characters=10)):
        with pytest.raises(UserError, match="--passage-characters"):
            bad.check()
