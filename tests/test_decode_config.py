import re
import subprocess
import sys

import pytest

from spt_jax.config.decode import DecodeConfig

NAN = float("nan")


@pytest.mark.parametrize(
    "options, message",
    [
        ({"num_beams": 0}, "num_beams is 0, expected 1 or more"),
        ({"num_results": 0}, "num_results is 0, expected 1 or more"),
        ({"sample": True, "top_k": 0}, "top_k is 0, expected 1 or more"),
        (
            {"num_beams": 4, "num_results": 5},
            "num_results is 5 but num_beams is 4; a search gives at most one answer a beam, "
            "so set num_beams to 5 or more",
        ),
        (
            {"sample": True, "num_results": 3},
            "num_results is 3 with sampling, which draws one answer for a row; give the row again "
            "for another, or set sample to false and num_beams to 3 or more",
        ),
        ({"length_penalty": NAN}, "length_penalty is nan, expected a finite number"),
        (
            {"num_beams": 4, "sample": True},
            "num_beams is 4 with sampling, expected one or the other; "
            "set num_beams to 1 or sample to false",
        ),
        (
            {"sample": True, "temperature": 0.0},
            "temperature is 0.0, expected more than 0; for the likeliest token set sample to false",
        ),
        ({"sample": True, "temperature": NAN}, "temperature is nan, expected more than 0; "),
        ({"sample": True, "top_p": 0.0}, "top_p is 0.0, expected more than 0 and at most 1"),
        ({"sample": True, "top_p": 1.1}, "top_p is 1.1, expected more than 0 and at most 1"),
        ({"sample": True, "top_p": NAN}, "top_p is nan, expected more than 0 and at most 1"),
        (
            {"temperature": 0.7},
            "temperature is 0.7 without sampling, which alone draws tokens; set sample to true",
        ),
        ({"top_k": 5}, "top_k is 5 without sampling, "),
        ({"top_p": 0.9, "num_beams": 2}, "top_p is 0.9 without sampling, "),
    ],
)
def test_options_that_make_no_sense(options, message):
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        DecodeConfig(**options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_beams": 4, "num_results": 4, "length_penalty": -0.5},
        {"sample": True, "temperature": 0.1, "top_k": 1, "top_p": 1e-6},
    ],
)
def test_options_that_do(options):
    assert hash(DecodeConfig(**options)) == hash(DecodeConfig(**options))


def test_it_does_not_import_jax():
    code = "import sys, spt_jax.config.decode; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
