"""``python -m pyrovae`` is the command ``pyrovae``."""

from pyrovae.command import main

if __name__ == "__main__":
    raise SystemExit(main())
