"""`python -m gateway` is `tollkeeper`."""

from gateway.cli import main

if __name__ == "__main__":
    main()
