"""CRC-32C against the values of RFC 3720 and a plain loop."""

import numpy as np
import pytest

from gptjax.interop import checksums
from gptjax.interop.checksums import crc32c, masked


def plain(data: bytes) -> int:
    register = 0xFFFFFFFF
    for byte in data:
        register ^= byte
        for _ in range(8):
            register = register >> 1 ^ (0x82F63B78 if register & 1 else 0)
    return register ^ 0xFFFFFFFF


def test_known_values():
    assert crc32c(b"123456789") == 0xE3069283
    assert crc32c(bytes(32)) == 0x8A9136AA
    assert crc32c(bytes(range(32))) == 0x46DD794E
    assert masked(0) == 0xA282EAD8


@pytest.mark.parametrize("block", [1 << 24, 1 << 9])
def test_any_length(block, monkeypatch):
    monkeypatch.setattr(checksums, "BLOCK", block)
    rng = np.random.default_rng(0)
    for size in (0, 1, 2, 3, 4, 5, 7, 16, 63, 65, 515, 2053):
        data = rng.bytes(size)
        assert crc32c(data) == crc32c(np.frombuffer(data, np.uint8)) == plain(data)
