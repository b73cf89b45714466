"""Names that a package imports when they are asked for."""

import pytest

import gptjax
from gptjax import parallel


@pytest.mark.parametrize("package", [gptjax, parallel])
def test_every_name_is_found_and_listed(package):
    for name in package.__all__:
        assert getattr(package, name) is vars(package)[name] and name in dir(package)
    with pytest.raises(AttributeError, match=f"module '{package.__name__}' has no attribute 'x'"):
        _ = package.x
