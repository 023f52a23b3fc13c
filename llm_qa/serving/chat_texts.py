"""The words of the chat page, in Korean and English."""

from __future__ import annotations

import os

KOREAN, ENGLISH = "ko", "en"

TEXTS: dict[str, dict[str, str]] = {
    KOREAN: {
        "title": "{model}에게 묻기",
        "question": "질문",
        "placeholder": "예: 벽지가 들뜨는 이유는 무엇인가요?",
        "ask": "묻기",
        "stop": "멈추기",
        "tuned": "학습한 모델의 답",
        "base": "학습 전 모델의 답",
        "marking": "학습한 모델의 답은 어떤가요?",
        "good": "좋음",
        "bad": "나쁨",
        "better": "더 나은 답",
        "better_placeholder": "이렇게 답했어야 합니다 …",
        "save": "더 나은 답 저장",
        "nearest": "가장 가까운 학습 질문",
        "nearest_none": "질문하면 여기에 나옵니다.",
        "nearest_missing": "이 모델의 학습 자료를 찾지 못해 보여 줄 수 없습니다.",
        "answering": "답하는 중입니다 …",
        "answered": "답이 끝났습니다. 표시한 내용은 {marks}에 저장됩니다.",
        "cut": "답이 {tokens}토큰에서 잘렸습니다. 잘린 답은 ‘좋음’으로 표시할 수 없습니다.",
        "stopped": "멈췄습니다.",
        "failed": "답하지 못했습니다: {error}",
        "marked_good": "‘좋음’으로 저장했습니다.",
        "marked_bad": "‘나쁨’으로 저장했습니다. 더 나은 답을 적으면 학습 자료가 됩니다.",
        "marked_better": "더 나은 답을 저장했습니다.",
        "nothing": "먼저 질문하세요.",
        "no_better": "더 나은 답이 비어 있습니다.",
        "unfinished": "끝나지 않은 답은 ‘좋음’으로 표시할 수 없습니다. 나쁨으로 표시하거나 더 나은 답을 적으세요.",
        "login": "사용자 이름은 {user}입니다.",
    },
    ENGLISH: {
        "title": "Ask {model}",
        "question": "Question",
        "placeholder": "For example: 벽지가 들뜨는 이유는 무엇인가요?",
        "ask": "Ask",
        "stop": "Stop",
        "tuned": "Answer of the tuned model",
        "base": "Answer of the model before training",
        "marking": "How is the tuned model's answer?",
        "good": "Good",
        "bad": "Bad",
        "better": "A better answer",
        "better_placeholder": "It should have answered …",
        "save": "Save the better answer",
        "nearest": "Nearest training questions",
        "nearest_none": "They are shown here when you ask.",
        "nearest_missing": "The training data of this model was not found, so they cannot be shown.",
        "answering": "Answering …",
        "answered": "The answer is complete. Marks are saved in {marks}.",
        "cut": "The answer was cut after {tokens} tokens. A cut answer cannot be marked as good.",
        "stopped": "Stopped.",
        "failed": "No answer: {error}",
        "marked_good": "Saved as good.",
        "marked_bad": "Saved as bad. With a better answer it becomes training data.",
        "marked_better": "The better answer is saved.",
        "nothing": "Ask a question first.",
        "no_better": "The better answer is empty.",
        "unfinished": "An unfinished answer cannot be marked as good: mark it as bad, or write a better one.",
        "login": "The user name is {user}.",
    },
}


def default_language() -> str:
    """KOREAN where the terminal's language is (LC_ALL, LC_MESSAGES, LANG), else ENGLISH."""
    named = next(filter(None, map(os.environ.get, ("LC_ALL", "LC_MESSAGES", "LANG"))), "")
    return KOREAN if named.lower().startswith("ko") else ENGLISH
