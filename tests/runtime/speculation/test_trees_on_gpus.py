"""Which of a head's trees a GPU's policy chooses from."""

from runtime.speculation.redrafter.head_file import TreeStatistics, worthwhile, worthwhile_on_gpus
from runtime.speculation.tree import TreeShape


def tree(num_nodes, num_beams, depth, length):
    return TreeStatistics(num_nodes, num_beams, depth, {"mean": length}, ())


TREES = (
    tree(12, 1, 3, 2.0), tree(12, 4, 3, 2.1), tree(12, 8, 3, 2.2),
    tree(12, 1, 4, 2.4), tree(12, 4, 4, 2.45), tree(12, 4, 5, 2.46),
    tree(32, 4, 3, 2.5), tree(32, 4, 4, 2.9), tree(32, 6, 4, 3.0), tree(32, 8, 4, 3.2),
)  # fmt: skip


def test_beams_that_cost_nothing_are_taken_at_every_depth_that_may_pay():
    assert [one.shape for one in worthwhile(TREES)] == [TreeShape(12, 1, 4), TreeShape(32, 8, 4)]
    fewest = [TreeShape(12, 1, 4), TreeShape(32, 8, 4)]
    measured = [TreeShape(12, 4, 3), TreeShape(12, 4, 4), TreeShape(32, 4, 3)]
    between = [TreeShape(16, 4, 3), TreeShape(24, 4, 3)]  # no tree of 12 nodes has 8 beams
    assert worthwhile_on_gpus(TREES) == (*fewest, *measured, *between)
