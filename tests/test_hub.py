"""Models go to a Hub and come back: a stand-in on this machine speaks its HTTP interface."""

import base64
import hashlib
import json
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers_runs import ENVIRONMENT, command

from resvae import VAE, HierarchicalVAE
from resvae.cli import main
from resvae.errors import ResvaeError
from resvae.storage import load

pytest.importorskip("huggingface_hub")
SMALL: dict[str, Any] = {"image_shape": (1, 8, 8), "widths": (8, 8), "strides": (1, 2)}


class Hub(ThreadingHTTPServer):
    """Repositories in memory: each name has branches, each branch files."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.models: dict[str, dict[str, dict[str, bytes]]] = {}
        self.address = f"http://127.0.0.1:{self.server_port}"


def sha(branch: str) -> str:
    return hashlib.sha1(branch.encode()).hexdigest()


class Answer(BaseHTTPRequestHandler):
    """The few requests that the client makes."""

    server: Hub  # pyright: ignore[reportIncompatibleVariableOverride]
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        """Say nothing."""

    def _send(self, body: Any, code: int = 200, **headers: str) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(code)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _files(self, name: str, revision: str) -> tuple[str, dict[str, bytes] | None]:
        branches = self.server.models.get(name, {})
        branch = next((each for each in branches if revision in (each, sha(each))), "")
        return sha(branch), branches.get(branch)

    def do_GET(self) -> None:
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(?:revision|tree)/([^/?]+))?(?:\?.*)?", self.path):
            commit, files = self._files(found[1], found[2] or "main")
            if files is None:
                self._send({"error": "Repository not found"}, 404, X_Error_Code="RepoNotFound")
            elif "/tree/" in self.path:
                oids = {name: hashlib.sha1(data).hexdigest() for name, data in files.items()}
                self._send([{"type": "file", "path": n, "size": len(d), "oid": oids[n]} for n, d in files.items()])
            else:
                self._send({"id": found[1], "sha": commit, "siblings": [{"rfilename": name} for name in files]})
        elif found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", self.path):
            commit, files = self._files(found[1], found[2])
            if (data := (files or {}).get(found[3])) is None:
                self._send({"error": "Entry not found"}, 404, X_Error_Code="EntryNotFound")
            else:
                self._send(data, ETag=f'"{hashlib.sha1(data).hexdigest()}"', X_Repo_Commit=commit)
        else:
            self._send({"error": self.path}, 404)

    do_HEAD = do_GET

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.headers.get("Authorization") != "Bearer secret":
            self._send({"error": "Invalid user token"}, 401)
        elif self.path == "/api/validate-yaml":
            self._send({"errors": [], "warnings": []})
        elif self.path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}"
            self.server.models.setdefault(name, {"main": {}})
            self._send({"url": f"{self.server.address}/{name}"})
        elif found := re.fullmatch(r"/api/models/(.+)/branch/(.+)", self.path):
            self.server.models[found[1]].setdefault(found[2], {})
            self._send({})
        elif found := re.fullmatch(r"/api/models/.+/preupload/.+", self.path):
            asked = json.loads(body)["files"]
            self._send({"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in asked]})
        elif found := re.fullmatch(r"/api/models/(.+)/commit/([^?]+).*", self.path):
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    content = base64.b64decode(line["value"]["content"])
                    self.server.models[found[1]][found[2]][line["value"]["path"]] = content
            self._send({"commitUrl": f"{self.server.address}/{found[1]}/commit/{'0' * 40}", "commitOid": "0" * 40})
        else:
            self._send({"error": self.path}, 404)


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def elsewhere(hub: Hub, cache: Path, arguments: list[str], token: str = "secret") -> subprocess.CompletedProcess[str]:
    """A process of its own: the client reads its settings when it is imported."""
    settings = {"HF_ENDPOINT": hub.address, "HF_HOME": str(cache), "HF_TOKEN": token, "HF_HUB_DISABLE_XET": "1"}
    return subprocess.run(
        [sys.executable, *arguments],
        env=ENVIRONMENT | settings,
        timeout=180,
        capture_output=True,
        text=True,
        cwd=cache,
    )


ROUND_TRIP = """
import torch
from resvae import HierarchicalVAE, VAE, load
from resvae.errors import ResvaeError
torch.manual_seed(0)
vae = HierarchicalVAE((1, 1), (1, 1), 2, image_shape=(1, 8, 8), widths=(8, 8), strides=(1, 2)).eval()
print(vae.push_to_hub("ann/levels"))
vae.push_to_hub("ann/levels", revision="old")
for again in (HierarchicalVAE.from_pretrained("ann/levels"), load("hf://ann/levels"), load("hf://ann/levels@old")):
    assert again.arguments == vae.arguments and not again.training
    for name, value in vae.state_dict().items():
        assert torch.equal(again.state_dict()[name], value)
for source, kind in (("ann/levels", VAE), ("ann/none", VAE)):
    try:
        kind.from_pretrained(source)
    except ResvaeError as error:
        print(error)
"""


def test_a_model_goes_to_the_hub_and_comes_back(hub, tmp_path):
    done = elsewhere(hub, tmp_path, ["-c", ROUND_TRIP])
    assert done.returncode == 0, done.stderr
    address, other, missing = done.stdout.strip().splitlines()
    assert address == f"{hub.address}/ann/levels"
    assert other == "model: ann/levels is a HierarchicalVAE, not a VAE"
    assert missing.startswith("model: ann/none could not be downloaded: ")
    files = hub.models["ann/levels"]["main"]
    assert set(files) - {".gitattributes"} == {"README.md", "config.json", "model.safetensors"}
    assert "library_name: resvae" in files["README.md"].decode()


VERBS = """
from resvae.cli import main
for command in (
    "push runs/run ann/digits",
    "evaluate hf://ann/digits",  # finds its data
    "sample hf://ann/other",
    "push runs/run digits",
    "push runs/none ann/none",
):
    print("code", main(command.split()), flush=True)
"""


def test_a_run_is_pushed_with_its_scores_and_used_by_its_name(hub, tmp_path):
    assert main(command(tmp_path, "--trainer.max_steps 2")) == 0
    done = elsewhere(hub, tmp_path, ["-c", VERBS])
    assert re.findall(r"^code (\d)$", done.stdout, re.MULTILINE) == ["0", "0", "2", "2", "2"], done.stderr
    assert f"wrote {hub.address}/ann/digits; resvae sample hf://ann/digits\n" in done.stdout
    files = hub.models["ann/digits"]["main"]
    card = files["README.md"].decode()
    report = json.loads(files["report.json"])
    assert card.startswith("---\n")
    assert f"value: {report['bits_per_dim']}" in card
    assert "# digits" in card
    assert {"config.yaml", "config.json", "model.safetensors"} < set(files)
    assert done.stdout.count(f"| {report['bits_per_dim']:.4f} |") == 2  # when it was exported, and from the Hub
    errors = [line for line in done.stderr.splitlines() if line.startswith("resvae: error: ")]
    for line, said in zip(
        errors,
        (
            "model: hf://ann/other could not be downloaded",
            "name: digits is not allowed; user/model",
            "runs/none is not the folder of a run",
        ),
        strict=True,
    ):
        assert said in line


def test_a_folder_is_pushed_as_it_is_by_who_may(hub, tmp_path):
    VAE((1, 1), 3, **SMALL).save_pretrained(tmp_path / "vae")
    pushed, refused = (
        elsewhere(hub, tmp_path, ["-m", "resvae", "push", "vae", "ann/vae"], token) for token in ("secret", "wrong")
    )
    assert pushed.returncode == 0, pushed.stderr
    assert {"README.md", "config.json", "model.safetensors"} <= set(hub.models["ann/vae"]["main"])
    assert refused.returncode == 2
    assert "resvae: error: model: ann/vae could not be uploaded" in refused.stderr


def test_a_folder_is_a_place_too(tmp_path):
    vae = VAE((1, 1), 3, **SMALL).eval()
    vae.save_pretrained(tmp_path / "vae")
    assert {path.name for path in (tmp_path / "vae").iterdir()} == {"config.json", "model.safetensors"}
    for again in (VAE.from_pretrained(tmp_path / "vae"), load(tmp_path / "vae")):
        assert torch.equal(again.state_dict()["head.weight"], vae.state_dict()["head.weight"])
    with pytest.raises(ResvaeError, match="is a VAE, not a HierarchicalVAE"):
        HierarchicalVAE.from_pretrained(tmp_path / "vae")


def test_without_the_package_one_line_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    said = "resvae: error: model: the Hub needs the package huggingface_hub: pip install huggingface_hub\n"
    for arguments in (["sample", "hf://ann/digits"], ["evaluate", "hf://ann/digits"]):
        assert main(arguments) == 2
        assert capsys.readouterr().err == said
