"""CRC-32C (Castagnoli) of arrays, as LevelDB's tables and TensorFlow's checkpoints hold it.

A register after the bytes A and B is the register after A, moved over as many zeros as B has
bytes, plus (xor) the register after B alone. So a block is cut into lanes that numpy takes
forward together, four bytes a step, and the lanes are joined in pairs. RFC 3720, appendix B.4.
"""

import functools

import numpy as np

POLYNOMIAL = np.uint32(0x82F63B78)  # with its bits reversed
BLOCK = 1 << 24  # bytes at a time
MOST_LANES = 12  # as a power of two
_ALL = 0xFFFFFFFF


def crc32c(data: bytes | np.ndarray) -> int:
    """The checksum of bytes, or of a flat array of uint8."""
    data = np.frombuffer(data, np.uint8) if isinstance(data, bytes) else data
    register = _ALL
    for start in range(0, data.size, BLOCK):
        register = _after(register, data[start : start + BLOCK])
    return register ^ _ALL


def masked(checksum: int) -> int:
    """A checksum as LevelDB stores it."""
    return ((checksum >> 15 | checksum << 17) + 0xA282EAD8) & _ALL


def _after(register: int, block: np.ndarray) -> int:
    """The register behind a block."""
    if block.size < 4:
        for byte in block.tolist():
            register = int(_tables()[0][register & 0xFF ^ byte]) ^ register >> 8
        return register
    lanes = 1 << min(MOST_LANES, block.size.bit_length() // 2)
    steps = -(-block.size // (4 * lanes))
    padded = np.zeros(4 * lanes * steps, np.uint8)  # zeros at the front change nothing
    padded[-block.size :] = block
    head = padded[padded.size - block.size :][:4]
    head ^= np.frombuffer(register.to_bytes(4, "little"), np.uint8)
    words = np.ascontiguousarray(padded.view("<u4").reshape(lanes, steps).T)
    low, high = _pairs()
    state = np.zeros(lanes, np.uint32)
    for step in range(steps):
        state ^= words[step]
        # clip: no index is outside, and it is not looked for
        state = high.take(state & 0xFFFF, mode="clip") ^ low.take(state >> 16, mode="clip")
    move = _over(4 * steps)
    while state.size > 1:
        state = _moved(move, state[::2]) ^ state[1::2]
        move = _moved(move, move)
    return int(state[0])


@functools.cache
def _tables() -> list[np.ndarray]:
    """The register behind each byte, and with one to three zeros behind it."""
    first = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        first = np.where(first & 1, first >> 1 ^ POLYNOMIAL, first >> 1)
    tables = [first]
    for _ in range(3):
        tables.append(first[tables[-1] & 0xFF] ^ tables[-1] >> 8)
    return tables


@functools.cache
def _pairs() -> tuple[np.ndarray, np.ndarray]:
    """The same of two bytes: alone, and with two more behind them."""
    two = np.arange(1 << 16)
    one, two_behind, three_behind = _tables()[0], _tables()[2], _tables()[3]
    alone = _tables()[1][two & 0xFF] ^ one[two >> 8]
    return alone, three_behind[two & 0xFF] ^ two_behind[two >> 8]


@functools.lru_cache(maxsize=64)
def _over(zeros: int) -> np.ndarray:
    """What becomes of each bit of a register behind so many bytes of zero."""
    done = np.uint32(1) << np.arange(32, dtype=np.uint32)
    step = _tables()[0][done & 0xFF] ^ done >> 8
    while zeros:
        done = _moved(step, done) if zeros & 1 else done
        step, zeros = _moved(step, step), zeros >> 1
    return done


def _moved(move: np.ndarray, state: np.ndarray) -> np.ndarray:
    """Registers after what `move` says of their bits."""
    out = np.zeros_like(state)
    for bit in range(32):
        out ^= np.where(state >> np.uint32(bit) & 1, move[bit], np.uint32(0))
    return out
