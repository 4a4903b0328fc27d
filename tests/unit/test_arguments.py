"""What stages share in how they read and print."""

import re

import pytest

from stages.arguments import add_embedding, add_source, add_step, other_source, parser_of, size_in_words


@pytest.mark.parametrize(
    ("size", "words"),
    [(0, "0.0 kB"), (1_234, "1.2 kB"), (99_999, "100.0 kB"), (100_000, "0.1 MB"), (2 * 10**9, "2,000.0 MB")],
)
def test_a_small_file_is_not_one_of_nothing(size: int, words: str) -> None:
    assert size_in_words(size) == words


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--mean 127.5", "--scale: got a run, which has its own, wanted --onnx or --weights"),
        ("--embeddings e.npz --size 112x96", "--scale: got embeddings, which need none, wanted --onnx"),
        ("--onnx n.onnx --step 0", "--step: got it with n.onnx, wanted a run: other networks have no checkpoints"),
        ("--weights n.pth", "--weights and --network: got one without the other, wanted both"),
    ],
)
def test_an_option_that_would_be_ignored_is_refused(options: str, message: str) -> None:
    parser = parser_of("")
    for add in (add_step, add_source, add_embedding):
        add(parser)
    with pytest.raises(ValueError, match=re.escape(message)):
        other_source(parser.parse_args(["results", *options.split()]))
