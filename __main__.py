"""python -m anchor4d"""

if __name__ == "__main__":
    try:
        from .cli import program

        code = program()
    except KeyboardInterrupt:  # before the command line catches it
        code = 130
    raise SystemExit(code)
