"""The handwritten digits that scikit-learn carries: 1,797 images of 8x8 pixels, 17 grey levels.

They are the test part of the UCI set "Optical Recognition of Handwritten Digits". Nothing is
fetched: the extra `images` brings the package. A document is an image in raster order, a symbol a
pixel, so that an image and its separator take 65 tokens and the split is one by image.
"""

import hashlib
from collections.abc import Iterator

from gptjax.data.cache import key_of
from gptjax.data.config import IMAGES
from gptjax.data.corpora.base import TextCorpus
from gptjax.data.tokenizers import SymbolTokenizer
from gptjax.errors import BadInput

FORMAT = 1  # raise it when the documents change
COUNT = 1797
PIXELS, LEVELS = IMAGES["digits"]
SHA256 = (
    "8f26b2bd9d135c256808f68f14fdabddde6d9c7f869ae419704b051f0f14b3b3"  # of all pixels, a byte each
)


class Digits(TextCorpus):
    """One document per image."""

    name = "digits"

    def fingerprint(self) -> str:
        return key_of([FORMAT, SHA256])

    def documents(self) -> Iterator[tuple[str, str]]:
        tokenizer = SymbolTokenizer(LEVELS)
        for number, pixels in enumerate(read_images()):
            yield f"digit_{number}", tokenizer.decode(pixels)

    def expected_bytes(self) -> int:
        return 2 * COUNT * PIXELS

    def details(self) -> dict:
        return {"pixels": PIXELS, "levels": LEVELS, "pixels_sha256": SHA256}


def read_images():
    """Grey levels, uint8 [images, 64]; BadInput without scikit-learn, or for other images."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise BadInput(
            "corpus 'digits' comes with scikit-learn, which is not installed: pip install -e "
            "'.[images]', or use data.corpus='pycode'"
        ) from None
    images = load_digits().data.astype("uint8")
    if hashlib.sha256(images.tobytes()).hexdigest() != SHA256:
        raise BadInput("the digits of this scikit-learn are not those that corpus 'digits' names")
    return images
