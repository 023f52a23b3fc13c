"""Bytes -> text, or one sentence with the encoding and the line."""

import pytest

from llm_qa.console import UserError
from llm_qa.data.encoding import decode

LINES = ["질문,답변", *(f"도배는 {i}월에 하나요?,예 그렇습니다 {i}" for i in range(40))]


@pytest.mark.parametrize(
    ("encoding", "title"), [("cp949", "cp949"), ("utf-8", "UTF-8"), ("utf-8-sig", "UTF-8 with BOM")]
)
def test_a_broken_byte_is_told_with_its_line_and_the_encoding_that_the_file_otherwise_is(tmp_path, encoding, title):
    path = tmp_path / "d.csv"
    good = "\n".join(LINES).encode(encoding)
    place = good.index(b"\n", good.index(b"\n") + 1) + 1  # the start of line 3
    path.write_bytes(good[:place] + b"\xff" + good[place:])
    with pytest.raises(UserError, match=f"is {title} text except for broken bytes in line 3: correct"):
        decode(path)
    path.write_bytes(good[:place] + b"\xff" + good[place:] + b"\n\xff")
    with pytest.raises(UserError, match=f"is {title} text except for broken bytes in 2 lines, the first is line 3"):
        decode(path)


def test_what_is_no_text_at_all_is_not_called_damaged(tmp_path):
    path = tmp_path / "d.csv"
    path.write_bytes(bytes(range(256)) * 4)
    with pytest.raises(UserError, match="is neither UTF-8 nor cp949 text: save it as CSV in UTF-8"):
        decode(path)
