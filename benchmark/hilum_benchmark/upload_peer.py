"""The usual way to take a file: FastAPI, a multipart form, UploadFile written to disk. ``FOLDER`` is its argument."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import uvicorn
from fastapi import FastAPI, UploadFile
from fastapi.responses import JSONResponse

app = FastAPI()


@app.get("/readyz")
def readyz() -> dict[str, bool]:
    """It can take files."""
    return {"ok": True}


@app.post("/upload")
def upload(file: UploadFile) -> JSONResponse:
    """Write the form's file into FOLDER."""
    path = Path(sys.argv[1]) / "volume"
    with path.open("wb") as target:
        shutil.copyfileobj(file.file, target, 1 << 20)
    return JSONResponse({"bytes": path.stat().st_size}, 201)


if __name__ == "__main__":
    port = int(sys.argv[2])
    sys.stdout.write(f"http://127.0.0.1:{port}\n")
    sys.stdout.flush()
    uvicorn.run(app, host="127.0.0.1", port=port, log_level="warning")
