import pickle

import pytest

from megagpt.data.errors import DataError


@pytest.mark.parametrize(("arguments", "message"), [(("a.txt", "is empty"), "a.txt: is empty"), (("a.txt", "is bad", 3), "a.txt:3: is bad")])
def test_data_error_comes_through_to_another_process(arguments, message):
    """As mpirun's ranks and workers send it."""
    error = pickle.loads(pickle.dumps(DataError(*arguments)))
    assert type(error) is DataError and str(error) == message
