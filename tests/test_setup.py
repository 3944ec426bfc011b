"""scripts/setup.sh in a checkout of its own; Python, Java and apt-get are stand-ins that note what they are asked."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "scripts" / "setup.sh"
TOOLS = ["bash", "cat", "chmod", "cp", "dirname", "env", "flock", "grep", "mkdir", "rm", "sed", "sha256sum"]

PYTHON = r"""
here=$(cd "${0%/*}" && pwd)
case "$*" in
    *version_info*) echo "${STUB_PYTHON:-3.11}" ;;
    *ensurepip*) [ -z "$STUB_NO_VENV" ] || [ -e "$STUB_LOG.apt" ] ;;
    "--version") echo "Python ${STUB_PYTHON:-3.11}" ;;
    "-m venv .venv") echo venv >>"$STUB_LOG"; mkdir -p .venv/bin; cp "$0" .venv/bin/python; echo "#!$PWD/.venv/bin/python" >.venv/bin/pip ;;
    "-m pip --version") ;;
    "-m pip install"*) echo pip >>"$STUB_LOG"; exit "${STUB_PIP:-0}" ;;
    *) exit 1 ;;
esac
"""  # noqa: E501
JAVA = """
home=$(cd "${0%/*}/.." && pwd)
echo "    java.home = $home" >&2
echo "    java.specification.version = VERSION" >&2
"""
APT = r"""
echo "apt-get $*" >>"$STUB_LOG"
case "$*" in
    *install*venv) touch "$STUB_LOG.apt" ;;
    *install*chromium) exit "${STUB_BROWSER:-0}" ;;
    *install*openjdk-17*) exit 100 ;; # as on Debian 13
    *install*openjdk-21*) mkdir -p JVM/java-21/bin; cp "$STUB_JAVA" JVM/java-21/bin/java ;;
esac
"""


class Checkout:
    """A folder with the script in it, and the machine that the script sees."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "check out"
        self.bin = folder / "bin"
        self.jvm = folder / "jvm"
        self.log = folder / "log"
        (self.root / "scripts").mkdir(parents=True)
        self.bin.mkdir()
        script = self.root / "scripts" / "setup.sh"
        script.write_text(SCRIPT.read_text(encoding="utf-8").replace("/usr/lib/jvm", str(self.jvm)), encoding="utf-8")
        script.chmod(0o755)
        (self.root / "pyproject.toml").write_text("[project]\n")
        (self.root / "constraints.txt").write_text("x==1\n")
        for tool in [*TOOLS, "touch"]:
            (self.bin / tool).symlink_to(shutil.which(tool))  # type: ignore[arg-type]
        self.stand_in(self.bin / "python3", PYTHON)
        self.stand_in(self.bin / "id", "echo 0")
        self.stand_in(self.bin / "apt-get", APT.replace("JVM", str(self.jvm)))
        self.java = self.stand_in(folder / "java-17" / "bin" / "java", JAVA.replace("VERSION", "17"))
        self.java_21 = self.stand_in(folder / "java-21", JAVA.replace("VERSION", "21"))
        self.java_11 = self.stand_in(folder / "java-11" / "bin" / "java", JAVA.replace("VERSION", "11"))

    @staticmethod
    def stand_in(path: Path, text: str) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"#!/bin/bash\n{text}\n", encoding="utf-8")
        path.chmod(0o755)
        return path

    def setup(self, *arguments: str, java_home: Path | None = None, **stubs: str) -> subprocess.CompletedProcess[str]:
        environment = {"PATH": str(self.bin), "STUB_LOG": str(self.log), "STUB_JAVA": str(self.java_21), **stubs}
        if java_home:
            environment["JAVA_HOME"] = str(java_home)
        command = [str(self.root / "scripts" / "setup.sh"), *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True, cwd="/", timeout=60)

    @property
    def asked(self) -> list[str]:
        return self.log.read_text().splitlines() if self.log.exists() else []


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path)


def home(checkout: Checkout) -> str:
    return (checkout.root / ".venv" / "java_home").read_text().strip()


def test_a_second_run_installs_nothing(checkout: Checkout) -> None:
    for _ in range(2):
        done = checkout.setup(java_home=checkout.java.parents[1])
        assert done.returncode == 0, done.stderr
    assert checkout.asked == ["venv", "pip"]
    assert home(checkout) == str(checkout.java.parents[1])


@pytest.mark.parametrize("file", ["pyproject.toml", "constraints.txt"])
def test_a_changed_list_of_packages_is_installed(checkout: Checkout, file: str) -> None:
    checkout.setup("--without-java")
    (checkout.root / file).write_text("changed")
    assert checkout.setup("--without-java").returncode == 0
    assert checkout.asked == ["venv", "pip", "pip"]


def test_a_failed_install_is_done_again(checkout: Checkout) -> None:
    failed = checkout.setup("--without-java", STUB_PIP="1")
    assert failed.returncode == 1
    assert "run the same command again" in failed.stderr
    assert checkout.setup("--without-java").returncode == 0
    assert checkout.asked == ["venv", "pip", "pip"]


@pytest.mark.parametrize("damage", ["moved", "no python", "old python"])
def test_a_venv_that_cannot_work_is_made_anew(checkout: Checkout, damage: str) -> None:
    checkout.setup("--without-java")
    if damage == "moved":
        checkout.root = checkout.root.rename(checkout.root.with_name("elsewhere"))
    elif damage == "no python":
        (checkout.root / ".venv" / "bin" / "python").unlink()
    else:
        checkout.stand_in(checkout.root / ".venv" / "bin" / "python", "echo 3.8")
    assert checkout.setup("--without-java").returncode == 0
    assert checkout.asked == ["venv", "pip"] * 2


def test_an_unsuitable_python_is_named(checkout: Checkout) -> None:
    failed = checkout.setup(STUB_PYTHON="3.13")
    assert failed.returncode == 1
    assert "needs Python 3.10 or 3.11" in failed.stderr
    assert "python3 is 3.13" in failed.stderr
    assert checkout.asked == []


def test_python_can_be_named(checkout: Checkout) -> None:
    own = checkout.stand_in(checkout.root / "my python", PYTHON)
    (checkout.bin / "python3").unlink()
    assert checkout.setup("--without-java", PYTHON=str(own)).returncode == 0


def test_a_missing_venv_module_is_installed(checkout: Checkout) -> None:
    assert checkout.setup("--without-java", STUB_NO_VENV="1").returncode == 0
    assert "apt-get install -q -y --no-install-recommends python3.11-venv" in checkout.asked
    assert checkout.asked[-2:] == ["venv", "pip"]


@pytest.mark.parametrize("how", ["no root", "no apt-get"])
def test_without_the_right_to_install_it_says_what_to_type(checkout: Checkout, how: str) -> None:
    if how == "no root":
        checkout.stand_in(checkout.bin / "id", "echo 1000")
        checkout.stand_in(checkout.bin / "sudo", '[ "$1" = -n ] || sleep 60; exit 1')  # it would ask for a password
    else:
        (checkout.bin / "apt-get").unlink()
    failed = checkout.setup(STUB_NO_VENV="1")
    assert (failed.returncode, "sudo apt-get install python3.11-venv" in failed.stderr) == (1, True)
    failed = checkout.setup()
    assert (failed.returncode, "sudo apt-get install openjdk-17-jre-headless" in failed.stderr) == (1, True)
    assert not any(line.startswith("apt-get") for line in checkout.asked)


def test_java_of_the_wrong_version_is_passed_over(checkout: Checkout) -> None:
    checkout.stand_in(checkout.bin / "java", JAVA.replace("VERSION", "17"))
    done = checkout.setup(java_home=checkout.java_11.parents[1])
    assert "it is Java 11" in done.stderr
    assert done.returncode == 0
    assert home(checkout) == str(checkout.bin.parent)


def test_java_is_installed_where_there_is_none(checkout: Checkout) -> None:
    done = checkout.setup()
    assert done.returncode == 0, done.stderr
    assert home(checkout) == str(checkout.jvm / "java-21")
    assert [line.split()[-1] for line in checkout.asked if "install" in line] == [
        "openjdk-17-jre-headless",
        "openjdk-21-jre-headless",
    ]


def test_a_browser_is_installed_for_the_tests_alone(checkout: Checkout) -> None:
    java = checkout.java.parents[1]
    checkout.setup(java_home=java)
    assert not any(line.startswith("apt-get") for line in checkout.asked)
    done = checkout.setup("--with-browser", java_home=java)
    assert (done.returncode, "no browser" in done.stderr) == (0, False)
    assert checkout.asked[-1] == "apt-get install -q -y --no-install-recommends chromium"


def test_a_browser_that_is_there_is_kept(checkout: Checkout) -> None:
    checkout.stand_in(checkout.bin / "google-chrome", "")
    assert checkout.setup("--with-browser", java_home=checkout.java.parents[1]).returncode == 0
    assert not any(line.startswith("apt-get") for line in checkout.asked)


@pytest.mark.parametrize("stubs", [{"STUB_BROWSER": "100"}, {}])
def test_without_a_browser_the_set_up_goes_on(checkout: Checkout, stubs: dict[str, str]) -> None:
    if not stubs:
        (checkout.bin / "apt-get").unlink()
    done = checkout.setup("--with-browser", java_home=checkout.java.parents[1], **stubs)
    assert (done.returncode, "no browser" in done.stderr) == (0, True)
