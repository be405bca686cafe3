"""`python -m sollol_proxy` is the command `sollol-proxy`."""

import sys

from sollol_proxy.cli import main

if __name__ == "__main__":
    sys.exit(main())
