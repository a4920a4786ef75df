"""``python -m mechsafety`` is the command line."""

from mechsafety.cli import main

if __name__ == "__main__":
    main(prog_name="mechsafety")
