"""Downloads from a local server: complete, resumed, cut short, wrong, a page instead of a file."""

import hashlib
import http.server
import io
import tarfile
import threading

import pytest

from segbench import Archive, registry
from segbench.data.preparation.download import fetch
from segbench.errors import DataError, IntegrityError, PluginError

CONTENT = bytes(range(256)) * 4000


class Server:
    """Serve ``files``.

    ``cut`` ends each answer after that many bytes; ``ranges`` allows partial requests.
    """

    def __init__(self):
        self.files, self.asked = {"/data.tar": CONTENT}, []
        self.cut, self.ranges, self.kind = None, True, "application/x-tar"
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                content = outer.files.get(self.path)
                if content is None:
                    self.send_error(404)
                    return
                wanted = self.headers.get("Range")
                outer.asked.append(wanted)
                start = int(wanted[6:-1]) if wanted and outer.ranges else 0
                if start >= len(content):
                    self.send_error(416)
                    return
                self.send_response(206 if start else 200)
                self.send_header("Content-Type", outer.kind)
                self.send_header("Content-Length", str(len(content) - start))
                self.end_headers()
                self.wfile.write(content[start:][: outer.cut])

            def log_message(self, *_):
                pass

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"
        self.thread = threading.Thread(
            target=self.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True
        )
        self.thread.start()

    def close(self):
        self.http.shutdown()
        self.http.server_close()
        self.thread.join(5)


@pytest.fixture
def server(monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    running = Server()
    yield running
    running.close()


def archive(server, kind="md5", content=CONTENT, name="data.tar"):
    return Archive(
        name, f"{server.url}/{name}", digest=f"{kind}:{hashlib.new(kind, content).hexdigest()}"
    )


@pytest.mark.parametrize("kind", ["md5", "sha256"])
def test_whole_and_only_once(server, tmp_path, kind):
    seen = []
    path = fetch(archive(server, kind), tmp_path, lambda *step: seen.append(step))
    assert path == tmp_path / "data.tar" and path.read_bytes() == CONTENT
    assert seen[-1] == (len(CONTENT), len(CONTENT), "data.tar")
    fetch(archive(server, kind), tmp_path)
    assert server.asked == [None]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["data.tar", "data.tar.lock"]


@pytest.mark.parametrize("ranges", [True, False])
def test_cut_short_and_resumed(server, tmp_path, ranges):
    server.cut = 300_000
    with pytest.raises(DataError, match="cut short") as caught:
        fetch(archive(server), tmp_path)
    assert "300,000 bytes" in str(caught.value) and "the download resumes" in str(caught.value)
    assert (tmp_path / "data.tar.part").stat().st_size == 300_000 and not (
        tmp_path / "data.tar"
    ).exists()
    server.cut, server.ranges = None, ranges
    assert fetch(archive(server), tmp_path).read_bytes() == CONTENT
    assert server.asked == [None, "bytes=300000-"]


def test_a_whole_part_is_only_checked(server, tmp_path):
    (tmp_path / "data.tar.part").write_bytes(CONTENT)
    assert fetch(archive(server), tmp_path).read_bytes() == CONTENT


def test_wrong_digest(server, tmp_path):
    wrong = archive(server, content=b"something else")
    with pytest.raises(IntegrityError, match="not the one expected") as caught:
        fetch(wrong, tmp_path)
    assert wrong.digest in str(caught.value) and hashlib.md5(CONTENT).hexdigest() in str(
        caught.value
    )
    assert [p.name for p in tmp_path.iterdir()] == ["data.tar.lock"]
    (tmp_path / "data.tar.part").write_bytes(b"of another file" * 10)
    with pytest.raises(IntegrityError):
        fetch(archive(server), tmp_path)
    assert fetch(archive(server), tmp_path).read_bytes() == CONTENT


def test_a_page_a_missing_file_and_no_server(server, tmp_path):
    server.kind, server.files["/data.tar"] = "text/html", b"<html>Sign in</html>"
    with pytest.raises(DataError, match="a page instead") as caught:
        fetch(archive(server), tmp_path)
    assert "Sign in" in str(caught.value) and not (tmp_path / "data.tar.part").exists()
    with pytest.raises(PluginError, match="the download failed"):
        fetch(archive(server, name="other.tar"), tmp_path)
    gone = archive(server)
    server.http.server_close()
    with pytest.raises(PluginError, match="the download failed"):
        fetch(gone, tmp_path)


def test_prepare_download_on_the_command_line(server, lab, monkeypatch):
    """From start to end, with a server that stops once."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        info = tarfile.TarInfo("Task09_Spleen/labelsTr/spleen_2.nii.gz")
        info.size = 5
        tar.addfile(info, io.BytesIO(b"label"))
    content = packed.getvalue()
    server.files["/Task09_Spleen.tar"] = content
    cls = registry.get("dataset", "msd_spleen").cls
    monkeypatch.setattr(
        cls, "archives", (archive(server, content=content, name="Task09_Spleen.tar"),)
    )
    server.cut = 2000
    first = lab.call("data", "prepare", "msd_spleen", "--download")
    assert first.returncode == 3 and "cut short" in first.stderr and "CC BY-SA 4.0" in first.stderr
    server.cut = None
    second = lab.call("data", "prepare", "msd_spleen", "--download")
    assert (
        second.returncode == 3 and "40 of 41 cases are missing" in second.stderr
    )  # downloaded, unpacked, checked
    assert (
        lab.folder / "segbench-data" / "downloads" / "Task09_Spleen.tar"
    ).read_bytes() == content


@pytest.mark.parametrize(
    "args, found",
    [
        (("la", "--download"), "no stable public address"),
        (("phantom", "--download"), "no stable public address"),
        (("msd_spleen", "--download", "--from", "x"), "exclude each other"),
        (("msd_lung",), "md5:8afd997733c7fc0432f71255ba4e52dc"),
        (("acdc", "--from", "nowhere"), "no such folder or archive"),
    ],
)
def test_what_cannot_be_done_says_what_can(lab, args, found):
    result = lab.call("data", "prepare", *args)
    assert result.returncode in (2, 3) and found in result.stderr
    if args[0] != "phantom" and "exclude" not in found:
        cls = registry.get("dataset", args[0]).cls
        assert cls.homepage in result.stderr and cls.files[0].split("'")[1] in result.stderr
