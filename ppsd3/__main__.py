"""``python -m ppsd3`` is the program ``ppsd3``."""

import sys

from .cli.main import main

sys.exit(main())
