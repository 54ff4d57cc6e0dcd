"""The downloader against a local HTTP server."""

import hashlib
import http.server
import sys
import threading
import types

import pytest

from models.download import Checkpoint, download, main
from util.errors import UserError

DATA = bytes(range(256)) * 40000  # 10 MB
CHECKPOINT = Checkpoint(
    "remote.pt", "local.pt", len(DATA), hashlib.sha256(DATA).hexdigest(), "some_config.yaml"
)


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves DATA; `cut_after` ends a response early, `ranges` says whether it can resume."""

    data, cut_after, ranges = DATA, None, True
    requests: list = []

    def do_GET(self):
        cls = type(self)
        wanted = self.headers.get("Range")
        cls.requests.append(wanted)
        start = int(wanted[6:-1]) if wanted and cls.ranges else 0
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(cls.data) - start))
        self.end_headers()
        self.wfile.write(cls.data[start : start + (cls.cut_after or len(cls.data))])

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    Handler.data, Handler.cut_after, Handler.ranges, Handler.requests = DATA, None, True, []
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        thread = threading.Thread(target=httpd.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{httpd.server_address[1]}"
        httpd.shutdown()


def test_whole_file(server, tmp_path):
    path = download(CHECKPOINT, tmp_path, server)
    assert path == tmp_path / "local.pt"
    assert path.read_bytes() == DATA
    assert [p.name for p in tmp_path.iterdir()] == ["local.pt"]


@pytest.mark.parametrize("can_resume", [True, False])
def test_interrupted_and_repeated(server, tmp_path, can_resume):
    Handler.cut_after, Handler.ranges = 3_000_000, can_resume
    with pytest.raises(UserError, match="repeat the command"):
        download(CHECKPOINT, tmp_path, server)
    assert not (tmp_path / "local.pt").exists()
    have = (tmp_path / "local.pt.part").stat().st_size
    assert 0 < have < len(DATA)
    Handler.cut_after = None
    assert download(CHECKPOINT, tmp_path, server).read_bytes() == DATA
    assert Handler.requests == [None, f"bytes={have}-"]


def test_present_file_is_not_fetched_again(server, tmp_path):
    download(CHECKPOINT, tmp_path, server)
    download(CHECKPOINT, tmp_path, server)
    assert len(Handler.requests) == 1


def test_other_bytes_are_refused(server, tmp_path):
    Handler.data = DATA[:-1] + b"x"
    with pytest.raises(UserError, match="SHA-256 differs"):
        download(CHECKPOINT, tmp_path, server)
    assert list(tmp_path.iterdir()) == []


def test_foreign_file_is_not_overwritten(server, tmp_path):
    (tmp_path / "local.pt").write_bytes(b"mine")
    with pytest.raises(UserError, match="move it away"):
        download(CHECKPOINT, tmp_path, server)
    assert (tmp_path / "local.pt").read_bytes() == b"mine"


def test_command_line_without_a_server(tmp_path, capsys):
    assert main(["ffhq", "--folder", str(tmp_path), "--source", "http://127.0.0.1:9"]) == 2
    assert "diffusion_ffhq_10m.pt" in capsys.readouterr().err


@pytest.mark.parametrize("how", ["whole", "another file", "no network"])
def test_by_huggingface_hub_where_it_is_installed(server, tmp_path, monkeypatch, how):
    """What it brings is checked; where it fails, our own code fetches the file."""

    def hf_hub_download(repository, name, local_dir):
        assert (repository, name) == ("deepinv/diffunet", "remote.pt")
        if how == "no network":
            raise ConnectionError("unreachable")
        local_dir.mkdir()
        (local_dir / name).write_bytes(DATA if how == "whole" else b"something else")
        return str(local_dir / name)

    hub = types.SimpleNamespace(hf_hub_download=hf_hub_download)
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    monkeypatch.setattr("models.download.SOURCE", server)
    path = download(CHECKPOINT, tmp_path, server)
    assert path.read_bytes() == DATA
    assert [p.name for p in tmp_path.iterdir()] == ["local.pt"]
    assert len(Handler.requests) == (how != "whole")
