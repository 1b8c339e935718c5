"""``python -m rglcd``."""

import sys

from rglcd.cli import main

sys.exit(main())
