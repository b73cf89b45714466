"""What a run says of itself."""

from gptjax.runs import in_short


def test_figures_in_short_say_what_the_bits_are_of():
    one = {"validation_loss": 1.5, "bits_per_byte": 2.0}
    assert in_short(one) == "validation 1.5000 nats/token = 2.0000 bits/byte"
    two = one | {"validation_masked_loss": 1.0, "validation_next_loss": 1.75}
    assert in_short(two | {"validation_row_accuracy": 0.5}) == (
        "validation 1.5000 nats/token (hidden tokens 1.0000, next tokens 1.7500 = 2.0000 "
        "bits/byte), 50.0% of the rows in the right class"
    )
