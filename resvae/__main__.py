"""``python -m resvae`` is ``resvae``."""

import sys

from resvae.cli import main

sys.exit(main())
