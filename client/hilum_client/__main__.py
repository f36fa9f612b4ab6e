"""``python -m hilum_client`` is ``hilum``."""

import sys

from hilum_client.cli import main

sys.exit(main())
