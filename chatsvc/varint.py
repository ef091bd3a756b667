"""Protobuf's variable-length numbers, for frames that are put together by hand and for cursors."""


def encode_varint(number: int) -> bytes:
    """A number of 0 or more: seven bits a byte, lowest first, the top bit set on all but the last.
    Source: protobuf's encoding guide."""
    if number < 0x80:
        return bytes((number,))
    digits = bytearray()
    while number >= 0x80:
        digits.append(number & 0x7F | 0x80)
        number >>= 7
    digits.append(number)
    return bytes(digits)
