import pytest

from chatsvc.varint import encode_varint


@pytest.mark.parametrize(
    ("number", "encoded"),
    [
        (0, "00"),
        (1, "01"),
        (127, "7f"),
        (128, "8001"),
        (150, "9601"),
        (16_383, "ff7f"),
        (16_384, "808001"),
        (2**63 - 1, "ffffffffffffffff7f"),
    ],
)
def test_numbers_are_encoded_as_protobuf_does(number: int, encoded: str) -> None:
    """Seven bits a byte, lowest first; 150 is the example of protobuf's guide."""
    assert encode_varint(number).hex() == encoded
