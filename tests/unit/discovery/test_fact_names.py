"""Names that expressions on facts cannot use are found when one is written."""

import pytest

from provisiond.discovery.expressions import Expression
from provisiond.discovery.fact_names import Wrong

REFUSED = {
    "vendro == 'x'": "no 'vendro'",
    "memory.mb > 1": "no 'mb' in memory",
    "nics[0].lldp.sytem": "no 'sytem' in nics.lldp",
    "disks.size > 1": "a list has no 'size'",
    "disks | selectattr('siz') | count": "no 'siz' in each of disks",
    "disks | map(attribute='siz') | list": "no 'siz' in each of disks",
    "vendor.__class__": "no '__class__'",
    "''.__class__.__mro__": "no '__",
    "range(10)": "no function 'range'",
    "vendor()": "no function 'vendor'",
    "n > 1": "no 'n'",
}


@pytest.mark.parametrize("source", REFUSED)
def test_what_is_refused(source: str) -> None:
    """Names that facts do not have, and ways out of the sandbox, with the place."""
    with pytest.raises(Wrong, match=REFUSED[source]):
        Expression(source)
