from tests.lab.sampler import Sample, longest_gap_seconds, moments_with_two


def row(node: str, *answers: tuple[float, int | None]) -> list[Sample]:
    return [Sample(node, began, began + 0.01, status) for began, status in answers]


def test_an_answer_while_another_node_is_active_is_a_moment_with_two() -> None:
    samples = row("node1", (1.0, 200), (1.1, 200), (1.2, 404)) + row("node2", (1.05, 200))
    assert len(moments_with_two(samples)) == 1


def test_a_handover_between_two_samples_is_no_moment_with_two() -> None:
    samples = row("node1", (1.0, 200), (1.1, 404)) + row("node2", (1.05, 200), (1.15, 200))
    assert moments_with_two(samples) == []


def test_silence_is_not_taken_for_being_active() -> None:
    samples = row("node1", (1.0, 200), (1.1, None), (1.3, 200)) + row("node2", (1.2, 200))
    assert moments_with_two(samples) == []


def test_the_gap_counts_from_the_last_answer_of_one_node_to_the_first_of_the_next() -> None:
    samples = row("node1", (1.0, 200), (1.5, 404)) + row("node2", (1.5, 404), (4.0, 200))
    assert round(longest_gap_seconds(samples, 1.0, 4.05), 2) == 3.0
