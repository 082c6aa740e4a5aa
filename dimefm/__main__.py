"""``python -m dimefm`` is the command ``dimefm``."""

from dimefm.cli import main

if __name__ == "__main__":
    main()
