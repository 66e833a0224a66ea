"""`python -m fedjax_rec` is the command line, also where its script is not installed."""

from fedjax_rec.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main())
