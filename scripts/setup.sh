#!/usr/bin/env bash
# Makes .venv with the pinned set and finds Java 17 or 21; run by make, and cheap to run again.
#
#   scripts/setup.sh [--without-java | --with-browser]
#
# Python: $PYTHON, else the first 3.10 or 3.11 of python3.11, python3.10, python3. pip's own settings and environment
# variables apply. Java: $JAVA_HOME, PATH, then /usr/lib/jvm; its home is written to .venv/java_home.
# System packages are installed with apt-get only as root or where sudo asks for no password. A browser, which one test
# looks at the report of compare with, is installed where that is easy; without one that test says why it skips.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
root=$(pwd -P)
unset PYTHONHOME PYTHONPATH

say() { printf 'setup: %s\n' "$*" >&2; }
die() {
    say "$@"
    exit 1
}

# --- system packages

as_root() {
    if [[ $(id -u) -eq 0 ]]; then "$@"; else sudo -n "$@"; fi
}

may_install() {
    command -v apt-get >/dev/null && { [[ $(id -u) -eq 0 ]] || sudo -n true 2>/dev/null; }
}

updated=no
apt_install() { # package
    if [[ $updated == no ]]; then
        updated=yes
        as_root apt-get update -q >&2 || say "apt-get update failed; trying with the lists that are there"
    fi
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends "$1" >&2
}

# --- Python

python_version() { "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null; }

find_python() {
    local candidate version seen=
    for candidate in ${PYTHON:+"$PYTHON"} python3.11 python3.10 python3; do
        version=$(python_version "$candidate") || continue # absent, or a version manager's empty shim
        if [[ $version == 3.10 || $version == 3.11 ]]; then
            printf '%s\n' "$candidate"
            return
        fi
        seen+=" $candidate is $version;"
    done
    die "needs Python 3.10 or 3.11 (petastorm runs on no later one);${seen:- no python3 found;}" \
        "install one, or name it: PYTHON=/path/to/python3.11 make ..."
}

venv_works() {
    local version
    version=$(python_version .venv/bin/python) && [[ $version == 3.10 || $version == 3.11 ]] &&
        .venv/bin/python -m pip --version >/dev/null 2>&1 &&
        grep -qF "$root/.venv/bin/" .venv/bin/pip # scripts of a moved checkout point to the old place
}

make_venv() {
    local python package
    python=$(find_python)
    if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
        package="python$(python_version "$python")-venv"
        may_install || die "$python cannot make virtual environments; type: sudo apt-get install $package"
        say "installing $package"
        apt_install "$package" || die "apt-get could not install $package; see its message above"
    fi
    say "making .venv with $("$python" --version)"
    rm -rf .venv
    "$python" -m venv .venv
}

install_package() {
    local wanted
    wanted=$(cat pyproject.toml constraints.txt | sha256sum)
    if [[ -f .venv/.installed && $(<.venv/.installed) == "$wanted" ]]; then return; fi
    rm -f .venv/.installed # a half-finished install is done again
    say "installing the pinned packages (the first time: minutes, and some GB of disk)"
    .venv/bin/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[petastorm,test]' >&2 ||
        die "pip failed, see above; run the same command again when that is solved"
    printf '%s\n' "$wanted" >.venv/.installed
}

# --- Java

suitable_home() { # java executable -> prints its home if it is Java 17 or 21
    local properties version
    properties=$("$1" -XshowSettings:properties -version 2>&1) || return
    version=$(sed -n 's/^ *java.specification.version = //p' <<<"$properties")
    if [[ $version == 17 || $version == 21 ]]; then
        sed -n 's/^ *java.home = //p' <<<"$properties"
    else
        say "passing over $1: it is Java $version, Spark 4.0 needs 17 or 21"
        return 1
    fi
}

find_java() {
    local candidate
    for candidate in ${JAVA_HOME:+"$JAVA_HOME/bin/java"} "$(command -v java || true)" /usr/lib/jvm/*/bin/java; do
        if [[ -x $candidate ]] && suitable_home "$candidate"; then return; fi
    done
    return 1
}

find_or_install_java() {
    local home package
    if ! home=$(find_java); then
        may_install || die "needs Java 17 or 21; type: sudo apt-get install openjdk-17-jre-headless" \
            "(newer systems: openjdk-21-jre-headless), or set JAVA_HOME to one"
        for package in openjdk-17-jre-headless openjdk-21-jre-headless default-jre-headless; do
            say "installing $package"
            if apt_install "$package" && home=$(find_java); then break; fi
            home=
        done
        [[ -n $home ]] || die "apt-get gave no Java 17 or 21; install one and set JAVA_HOME to it"
    fi
    printf '%s\n' "$home" >.venv/java_home
}

# --- a browser

find_or_install_browser() {
    local name
    for name in chromium chromium-browser google-chrome chrome; do
        if command -v "$name" >/dev/null; then return; fi
    done
    if may_install && say "installing chromium" && apt_install chromium; then return; fi
    say "no browser: a test of the report of compare will skip; Debian has one as the package chromium"
}

# Two makes at once wait for each other; the lock lies on this file itself and goes with the process.
exec 9<scripts/setup.sh
if command -v flock >/dev/null; then flock 9; fi

venv_works || make_venv
install_package
if [[ ${1-} != --without-java ]]; then find_or_install_java; fi
if [[ ${1-} == --with-browser ]]; then find_or_install_browser; fi
