"""What is said before and after a run: figures in words, and the sentence on few updates."""

from llm_qa.planning.figures import FEW_UPDATES, Figures, few_updates


def test_figures_are_said_with_their_units():
    assert str(Figures(3 * 2**30, 16_514.2, 3725)) == "peak 3.0 GiB of a GPU, 16,514 tok/s, 1h02m"


def test_enough_updates_are_not_remarked():
    assert few_updates(FEW_UPDATES, 3, 4, warms_up=True) is None


def test_few_updates_are_said_with_the_epochs_that_would_do():
    said = few_updates(6, 3, 4, warms_up=True)
    assert said.startswith("6 updates in all are few to learn from, the first of them at a learning rate near 0")
    assert "lower --global-batch-size (now 4)" in said
    assert "raise --num-train-epochs (now 3; 25 give about 50 updates)" in said
    without = few_updates(1, 1, 1, warms_up=False)
    assert "--global-batch-size" not in without, "it cannot be lowered"
    assert "at a learning rate near 0" not in without
    assert without.endswith("make tune finds learning rate, batch size and epochs for your data")
