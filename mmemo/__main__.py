"""``python -m mmemo``, the same as ``mmemo``."""

import sys

from mmemo.cli.app import main

sys.exit(main())
