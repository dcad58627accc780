"""What the held-out loss means: only tokens that the loss counts take part."""

import math

import numpy as np
import pytest

from megagpt.data.batch import encoded_row
from megagpt.pretrain.evaluate import TextSize, unigram_cross_entropy


class Bytes:
    """A tokenizer whose ids are bytes."""

    def decode(self, ids):
        return bytes(int(id) for id in ids).decode()


def test_text_size_counts_the_targets_alone():
    rows = [encoded_row(list(b"abcd")), encoded_row(list(b"xyz"), [1, 0, 1])]
    measured = TextSize.of(rows, Bytes()).describe(2.0)
    assert measured == {"eval_loss": 2.0, "perplexity": pytest.approx(math.exp(2)), "bits_per_byte": pytest.approx(2 / math.log(2))}

    class TwoBytes(Bytes):
        def decode(self, ids):
            return 2 * super().decode(ids)

    assert TextSize.of(rows, TwoBytes()).describe(2.0)["bits_per_byte"] == pytest.approx(1 / math.log(2))


def test_unigram_cross_entropy_counts_the_targets_alone():
    train = [encoded_row([3, 0, 0, 1, 2], [1, 1, 1, 1, 0])]  # targets 0, 0, 1; one more of each id for smoothing
    frequencies = np.array([3, 2, 1, 1]) / 7
    held_out = [encoded_row([1, 0, 3]), encoded_row([1, 2, 2], [1, 0, 0])]
    assert unigram_cross_entropy(train, held_out, 4) == pytest.approx(-np.log(frequencies[[0, 3]]).mean())
