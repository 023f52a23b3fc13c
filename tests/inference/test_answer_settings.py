"""What the help of the flags says of answers is what the settings do."""

from llm_qa.inference.settings import MAX_NEW_TOKENS_HELP, SHORTEST_LIMIT


def test_the_help_names_the_shortest_limit():
    assert f"at least {SHORTEST_LIMIT}" in MAX_NEW_TOKENS_HELP
