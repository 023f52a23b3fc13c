"""Files of questions and answers -> records: CSV, Excel workbooks, JSON and JSONL of several shapes."""

from llm_qa.data.readers.files import ReadResult, Rejected, read_files

__all__ = ["ReadResult", "Rejected", "read_files"]
