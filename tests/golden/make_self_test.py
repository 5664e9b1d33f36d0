"""Writes the picture that `ppsd3 doctor` compares its own with: needs the bundled model alone.

python tests/golden/make_self_test.py
"""

import numpy as np
from PIL import Image

from ppsd3.cli.doctor import self_test
from ppsd3.ops import use_kernels

if __name__ == "__main__":
    with use_kernels("reference"):
        Image.fromarray((self_test.picture_of("float32") * 255).round().astype(np.uint8)).save(self_test.GOLDEN)
