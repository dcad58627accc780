"""`python -m megagpt VERB …`."""

from megagpt.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main())
