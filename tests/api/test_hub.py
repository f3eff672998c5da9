"""Weights on a hub: pushed, pulled and predicted with, against a server in this process."""

import base64
import hashlib
import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

import segbench
from segbench.api import hub
from segbench.errors import IntegrityError, PluginError, UsageError
from segbench.training.model_file import FILES, INDEX
from segbench.training.run import execute

NAME = "lab/balls"


class Handler(BaseHTTPRequestHandler):
    """Answers the requests of ``huggingface_hub`` that pushing and pulling make."""

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path == "/api/repos/create":
            self.server.created = json.loads(body)
            self.answer({"url": f"{self.server.address}/{NAME}"})
        elif self.path == "/api/validate-yaml":
            self.answer({"errors": [], "warnings": []})
        elif self.path == f"/api/models/{NAME}/preupload/main":
            files = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                for file in json.loads(body)["files"]
            ]
            self.answer({"files": files})
        elif self.path == f"/api/models/{NAME}/commit/main":
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    content = base64.b64decode(line["value"]["content"])
                    self.server.files[line["value"]["path"]] = content
            oid = self.server.commit
            url = f"{self.server.address}/{NAME}/commit/{oid}"
            self.answer({"commitUrl": url, "commitOid": oid, "success": True})
        else:
            self.refuse()

    def do_GET(self):
        start = f"/{NAME}/resolve/"
        name = self.path.removeprefix(start).partition("/")[2]
        if not self.path.startswith(start) or not self.server.files:
            self.refuse()
        elif name not in self.server.files:
            self.refuse("EntryNotFound")
        else:
            self.send(self.server.files[name])

    do_HEAD = do_GET

    def answer(self, document):
        self.send(json.dumps(document).encode())

    def send(self, content):
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("ETag", f'"{hashlib.sha1(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", self.server.commit)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def refuse(self, code="RepoNotFound"):
        self.send_response(404)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *details):
        pass


@pytest.fixture
def server(monkeypatch, tmp_path):
    """Return a running server, which the client asks; its cache is in a folder of the test."""
    constants = pytest.importorskip("huggingface_hub.constants", reason="the extra 'hub'")
    found = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    found.files = {}
    found.created = {}
    found.commit = "c" * 40
    found.address = f"http://127.0.0.1:{found.server_port}"
    monkeypatch.setenv("HF_ENDPOINT", found.address)
    monkeypatch.setenv("HF_TOKEN", "of-this-test")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    thread = threading.Thread(target=found.serve_forever, daemon=True)
    thread.start()
    yield found
    found.shutdown()
    found.server_close()


@pytest.fixture
def run(lab):
    prepared = lab.prepared("supervised", steps=2)
    execute(prepared, lab.machine(), lab.reporter())
    return segbench.load(prepared.folder.path, lab.folder / "out", lab.folder / "data", "cpu")


def test_what_was_pushed_predicts_from_the_hub(lab, run, server):
    done = lab.call("--root", "out", "runs", "push", run.id, f"hub:{NAME}")
    assert done.returncode == 0 and "commit ccc" in done.stdout, done.stderr
    assert "private" in server.created.values() or server.created.get("private") is True
    assert set(server.files) == {INDEX, *FILES}

    image = np.random.default_rng(0).normal(0, 1, (1, 20, 20, 20)).astype(np.float32)
    loaded = segbench.load_model(f"hub:{NAME}", device="cpu")
    expected = run.predict(image).probabilities
    assert np.array_equal(loaded.predict(image).probabilities, expected)

    done = lab.call("runs", "pull", f"hub:{NAME}@main")
    assert done.returncode == 0 and (lab.folder / "balls" / INDEX).is_file(), done.stderr
    again = lab.call("runs", "pull", f"hub:{NAME}")
    assert again.returncode == 2 and "holds files" in again.stderr

    import nibabel

    nibabel.Nifti1Image(image[0], np.eye(4)).to_filename(lab.folder / "scan.nii.gz")
    done = lab.call("predict", f"hub:{NAME}", "scan.nii.gz", "-o", "seg", "--device", "cpu")
    assert done.returncode == 0 and (lab.folder / "seg/scan_seg.nii.gz").is_file(), done.stderr

    server.commit = "d" * 40
    server.files[INDEX] = server.files[INDEX].replace(b'"files"', b'"filez"')
    with pytest.raises(IntegrityError, match="incomplete or damaged"):
        hub.pull(f"hub:{NAME}", lab.folder / "changed")


def test_what_the_hub_does_not_have_is_named(server, lab):
    with pytest.raises(UsageError, match="the hub has no model 'hub:lab/other'"):
        hub.pull("hub:lab/other")
    server.files["README.md"] = b"of another program"
    with pytest.raises(UsageError, match="the hub has no model"):
        hub.pull(f"hub:{NAME}", lab.folder / "other")


def test_a_hub_that_does_not_answer_is_an_error_of_ours(server, monkeypatch):
    server.shutdown()
    server.server_close()
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # between the client's tries
    with pytest.raises(PluginError, match="cannot be reached") as caught:
        hub.pull(f"hub:{NAME}")
    assert "HF_ENDPOINT" in caught.value.details["fix"]


def test_without_the_client_the_line_for_pip_is_shown(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(PluginError, match="need huggingface_hub") as caught:
        hub.pull(f"hub:{NAME}")
    assert caught.value.details["fix"] == 'pip install "segbench[hub]"'


@pytest.mark.parametrize("text", ["hub:balls", "hub:a/b/c", "hub:../x", "hub:lab/balls@", "hub:"])
def test_other_addresses_are_refused(text):
    with pytest.raises(UsageError, match="no address of a model"):
        hub.parse(text)
    assert hub.is_address(text)
