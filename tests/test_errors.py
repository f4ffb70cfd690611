"""Run with: pytest tests/test_errors.py"""

import pickle
from io import BytesIO

import pytest

from app.text import text
from models.errors import InputError, brief

OBJECTS = {
    "buffer": BytesIO(),
    "nameless": object(),
    "function": lambda: None,
    "method": BytesIO().read,
    "held": [object(), {"of": BytesIO()}],
}


@pytest.mark.parametrize("value", OBJECTS.values(), ids=OBJECTS)
def test_no_message_says_where_in_memory_an_object_lies(value) -> None:
    assert " at 0x" in repr(value)
    error = InputError(f"{value!r} cannot be read; name another")
    for said in (str(error), str(pickle.loads(pickle.dumps(error))), brief(OSError(repr(value))), text(repr(value))):
        assert "0x" not in said and said.lstrip("\\")[0] in "<["
    assert str(error).endswith(" cannot be read; name another")


def test_a_word_without_end_loses_its_middle() -> None:
    path = "/data/" + 5000 * "x" + "/photo.jpg"
    said = str(InputError(f"there is no file {path}; name another"))
    assert said.startswith("there is no file /data/xxx") and said.endswith("xxx/photo.jpg; name another")
    assert "x...x" in said and len(said) < 300
    assert str(InputError(f"there is no file {path[:250]}")) == f"there is no file {path[:250]}"


def test_other_numbers_in_base_16_stay() -> None:
    assert brief(ValueError("byte 0xff at 3, signature 0x89504e47")) == "byte 0xff at 3, signature 0x89504e47"
