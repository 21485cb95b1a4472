"""What a test asks of a refusal: that it is one, and why."""

from collections.abc import Callable

import pytest

from economics.errors import Reason, Rejected


def reason(call: Callable[..., object], *args: object, **kwargs: object) -> Reason:
    """Return why a call is refused; fails if it is not."""
    with pytest.raises(Rejected) as verdict:
        call(*args, **kwargs)
    return verdict.value.reason
