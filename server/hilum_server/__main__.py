"""``python -m hilum_server``: the same as ``hilum serve``."""

from hilum_server.cli import serve_app

if __name__ == "__main__":
    serve_app()
