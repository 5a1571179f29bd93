"""`python -m homodistil.cli`."""

import sys

from homodistil.cli import main

sys.exit(main())
