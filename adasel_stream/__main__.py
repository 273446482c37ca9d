"""Make `python -m adasel_stream` the command `adasel-stream`."""

import sys

from adasel_stream.cli import main

sys.exit(main())
