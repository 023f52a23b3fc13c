"""Which answers are shown."""

from evaluation.fixtures import make_rows
from llm_qa.evaluation.report.samples import DRAWN, choose_samples


def test_samples_are_the_extremes_and_a_seeded_rest():
    base, tuned = make_rows(tuned=False), make_rows(tuned=True)
    base[3]["prediction"], tuned[3]["prediction"] = base[3]["references"][0], "결"
    tuned[5] |= {"prediction": "", "closest_training": {"question": 0.9, "answer": 0.1}}
    base[5]["prediction"] = ""
    groups = choose_samples(base, tuned, count=4, seed=0)
    assert list(groups) == ["Most improved", "Most worsened", "Worst", "Drawn at random"]
    gains = [sample.tuned_f1 - sample.base_f1 for sample in groups["Most improved"]]
    assert gains == sorted(gains, reverse=True)
    assert len(gains) == 4
    assert [sample.tuned for sample in groups["Most worsened"]] == ["결"]
    worst = groups["Worst"]
    assert (worst[0].tuned, worst[0].identity, worst[0].close) == ("", tuned[5]["id"], True)
    assert [s.tuned_f1 for s in worst] == sorted(s.tuned_f1 for s in worst)
    assert len({id(s) for group in groups.values() for s in group}) == 4 + 1 + 4 + min(4, DRAWN)
    assert choose_samples(base, tuned[::-1], count=4, seed=0) == groups
    assert choose_samples(base, tuned, count=4, seed=1)["Drawn at random"] != groups["Drawn at random"]
    assert list(choose_samples(None, tuned, count=4, seed=0)) == ["Worst", "Drawn at random"]
    assert choose_samples(base, tuned, count=0, seed=0) == {}
