"""Who may come in, and what is never done with what comes: no pickle of ours, bounded frames and files, no open dashboard unnoticed."""

import ast
import http.server
import threading
from pathlib import Path

import pytest

import locallearn
from locallearn.commands import doctor
from locallearn.config import reading
from locallearn.errors import ConfigError
from locallearn.runtime import ends

ROOT = Path(locallearn.__file__).parent
UNPICKLERS = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
DANGEROUS = {"eval", "exec", "compile", "__import__"}


def found(source):
    """What in a program unpickles, or runs text as a program, as (line, what)."""
    for node in ast.walk(ast.parse(source)):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Attribute):
            names = [node.attr]
        if any(part in UNPICKLERS for name in names for part in name.split(".")):
            yield node.lineno, "a pickle"
        if isinstance(node, ast.Call):
            yield from ((node.lineno, what) for what in called(node))


def called(node):
    function = node.func
    name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
    owner = getattr(getattr(function, "value", None), "id", "")
    given = {keyword.arg: keyword.value for keyword in node.keywords}
    if isinstance(function, ast.Name) and name in DANGEROUS:
        yield name
    if owner in ("np", "numpy", "jnp") and name in ("load", "fromfile"):
        allowed = given.get("allow_pickle")
        if not (isinstance(allowed, ast.Constant) and allowed.value is False):
            yield "numpy.load without allow_pickle=False"
    if owner == "yaml" and name in ("load", "load_all", "unsafe_load", "full_load", "parse", "compose"):
        loader = ast.unparse(given["Loader"]) if "Loader" in given else ""
        if "SafeLoader" not in loader:
            yield "yaml without a SafeLoader"
    if any(isinstance(value, ast.Constant) and value.value is True for key, value in given.items() if key == "shell"):
        yield "a shell"


def test_nothing_of_ours_unpickles_or_runs_what_it_read():
    files = sorted(ROOT.rglob("*.py"))
    assert len(files) > 100
    assert not [f"{path.relative_to(ROOT)}:{line}: {what}" for path in files for line, what in found(path.read_text())]


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "import numpy, cloudpickle as cp",
        "from ray import cloudpickle",
        "def f():\n    from pickle import loads",
        "import ray\nray.cloudpickle.loads(b'')",
        "import numpy as np\nnp.load('x')",
        "import numpy as np\nnp.load('x', allow_pickle=True)",
        "import numpy as np\nnp.load('x', allow_pickle=flag)",
        "import yaml\nyaml.load('x', Loader=yaml.Loader)",
        "import yaml\nyaml.full_load('x')",
        "eval('1')",
        "import subprocess\nsubprocess.run('x', shell=True)",
    ],
)
def test_the_search_finds_every_form(source):
    assert list(found(source))


def test_the_search_lets_well_alone():
    fine = "import numpy as np, yaml, re\nnp.load('x', allow_pickle=False)\nyaml.safe_load('x')\nre.compile('x')\nmodel.eval()"
    assert not list(found(fine + "\nyaml.load('x', Loader=yaml.SafeLoader)"))


def test_a_configuration_that_is_too_large_is_refused_unread(tmp_path):
    path = tmp_path / "large.yaml"
    path.write_bytes(b"#" * (reading.MAX_BYTES + 1))
    with pytest.raises(ConfigError, match="larger than 1 MiB"):
        reading.read(path)


def test_frames_have_a_limit():
    """`tests/fabrics/test_links.py` sends longer ones."""
    assert ends.LIMIT <= 2**30


# an open dashboard


class _Dashboard(http.server.BaseHTTPRequestHandler):
    status = 200

    def do_GET(self):
        self.send_response(self.status if self.path == "/api/jobs/" else 404)
        self.end_headers()

    def log_message(self, *_):
        pass


@pytest.fixture(params=[200, 401, 403])
def answering(request):
    """(status, port) of a server that answers like a dashboard of Ray: open, or asking for a token."""
    handler = type("Handler", (_Dashboard,), {"status": request.param})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield request.param, server.server_address[1]
    server.shutdown()
    thread.join()
    server.server_close()


def looked(*processes):
    command = ["/usr/bin/python3", "/somewhere/ray/dashboard/dashboard.py"]
    return doctor._dashboards([("1", ["/bin/sh"]), *((str(k), command + list(words)) for k, words in enumerate(processes, start=2))])


def test_doctor_warns_of_a_dashboard_beyond_loopback_that_asks_for_no_token(answering):
    status, port = answering
    well, text = looked(("--host=0.0.0.0", f"--port={port}", "--temp-dir=/tmp/ray"))
    assert well == (status != 200)
    if not well:
        assert f"(process 2) listens on 0.0.0.0:{port}, beyond this machine, and asks for no token" in text
        assert "RAY_AUTH_MODE=token" in text


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1"])
def test_doctor_lets_loopback_alone(answering, host):
    well, text = looked((f"--host={host}", f"--port={answering[1]}"))
    assert well
    assert f"{host}:{answering[1]}" in text


def test_doctor_looks_at_the_processes_of_this_machine():
    assert any("python" in words[0] for _, words in doctor._processes())
    assert looked() == (True, "no dashboard of Ray is open to strangers")
