"""The package's metadata agree with each other, and its requirements with the tested set."""

import configparser
import inspect
import re
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import diffussm_jax

ROOT = Path(__file__).parents[1]
SETUP = configparser.ConfigParser()
SETUP.read(ROOT / "setup.cfg")
EXTRAS = ["docs", "lint", "test"]  # that `make install` installs
PYTHONS = ["3.11", "3.12", "3.13"]


def requirements(text):
    lines = (line.strip() for line in text.splitlines())
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


def test_the_version_is_the_same_everywhere():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == diffussm_jax.__version__
    assert SETUP["metadata"]["version"] == "attr: diffussm_jax.__version__"
    assert f"## [{diffussm_jax.__version__}]" in (ROOT / "CHANGELOG.md").read_text()


@pytest.mark.parametrize("python", PYTHONS)
def test_every_requirement_is_pinned_to_a_version_in_its_range(python):
    environment = {"python_version": python, "sys_platform": "linux"}
    pins = {
        canonicalize_name(pin.name): str(pin.specifier).removeprefix("==")
        for pin in requirements((ROOT / "requirements.txt").read_text())
        if pin.marker is None or pin.marker.evaluate(environment)
    }
    texts = [SETUP["options"]["install_requires"]]
    texts += [SETUP["options.extras_require"][extra] for extra in EXTRAS]
    for requirement in requirements("\n".join(texts)):
        if requirement.marker is None or requirement.marker.evaluate(environment):
            pin = pins.get(canonicalize_name(requirement.name))
            assert pin is not None, f"requirements.txt lacks {requirement.name}"
            assert pin in requirement.specifier, f"{requirement} is pinned to {pin}"


@pytest.mark.parametrize("python", PYTHONS)
def test_the_cuda_compiler_is_of_the_same_release_as_jax(python):
    def pins(name):
        lines = (ROOT / name).read_text().replace("-r requirements.txt\n", "")
        parsed = [x for x in requirements(lines) if x.marker]
        return {
            x.name: str(x.specifier)
            for x in parsed
            if x.marker.evaluate({"python_version": python})
        }

    jax, compiler = pins("requirements.txt")["jax"], pins("requirements-gpu.txt")
    assert set(compiler.values()) == {jax}
    extra = requirements(SETUP["options.extras_require"]["plan-gpu"])
    wanted = {x.name for x in extra if x.marker.evaluate({"python_version": python})}
    assert wanted < set(compiler)


def test_the_tested_versions_of_python_are_those_of_ci():
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())
    assert workflow["jobs"]["test"]["strategy"]["matrix"]["python"] == PYTHONS
    classifiers = SETUP["metadata"]["classifiers"]
    assert re.findall(r"Python :: (3\.\d+)$", classifiers, re.MULTILINE) == PYTHONS


def test_every_folder_with_code_ships():
    """`packages = find:` takes folders with an `__init__.py` alone."""
    package = ROOT / "diffussm_jax"
    folders = {path.parent for path in package.rglob("*.py")}
    assert not [folder for folder in folders if not (folder / "__init__.py").exists()]
    assert (package / "py.typed").exists()
    assert SETUP["options.package_data"]["diffussm_jax"] == "py.typed"


def test_jax_still_has_its_private_clusters():
    """The one import of `jax._src`: JAX has no public way to ask which hosts a TPU slice has."""
    paths = (ROOT / "diffussm_jax").rglob("*.py")
    assert [path.name for path in paths if "jax._src" in path.read_text()] == ["distributed.py"]
    mend = "JAX has changed its clusters: mend _find_tpu_slice of parallel/distributed.py"
    try:
        from jax._src.clusters.cloud_tpu_cluster import GceTpuCluster, GkeTpuCluster
    except ImportError:
        pytest.fail(mend)
    for cluster in (GkeTpuCluster, GceTpuCluster):
        for method in ("is_env_present", "get_process_count", "get_process_id"):
            assert callable(getattr(cluster, method, None)), mend
        assert len(inspect.signature(cluster.get_coordinator_address).parameters) == 2, mend
