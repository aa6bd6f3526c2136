#!/usr/bin/env bash
# Makes .venv in the checkout. `make setup` runs this, and so does every make target that needs the environment.
#
# At once when nothing is to be done; waits when another one is at work; starts afresh after one that was interrupted
# (pip's cache keeps the downloads). What a human may set:
#
#   PYTHON=python3.12            which Python            (default: the first of python3, 3.13, 3.12, 3.11 that will do)
#   UNDERSTUDY_DEVICE=cpu|gpu    which pinned list       (default: gpu where nvidia-smi works, else cpu)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

readonly TORCH_CPU_INDEX=https://download.pytorch.org/whl/cpu
readonly MIN_CUDA13_DRIVER=580
readonly NUM_STEPS=6
step_number=0

fail() {
    printf 'understudy: %s\n' "$@" >&2
    exit 1
}

warn() {
    echo "understudy: $*" >&2
}

step() {
    step_number=$((step_number + 1))
    printf '[%d/%d] %3d s  %s\n' "$step_number" "$NUM_STEPS" "$SECONDS" "$1"
}

find_device() {
    local driver
    if [[ -n ${UNDERSTUDY_DEVICE:-} ]]; then
        [[ $UNDERSTUDY_DEVICE == cpu || $UNDERSTUDY_DEVICE == gpu ]] \
            || fail "UNDERSTUDY_DEVICE is cpu or gpu, not '$UNDERSTUDY_DEVICE'."
        echo "$UNDERSTUDY_DEVICE"
    elif driver=$(nvidia-smi --query-gpu=driver_version --format=csv,noheader 2>/dev/null) && [[ -n $driver ]]; then
        if ((${driver%%.*} >= MIN_CUDA13_DRIVER)); then
            echo gpu
        else
            warn "this GPU's driver is ${driver%%$'\n'*}; CUDA 13 needs $MIN_CUDA13_DRIVER or newer." \
                "Setting up for the CPU. (UNDERSTUDY_DEVICE=gpu overrides this.)"
            echo cpu
        fi
    else
        echo cpu
    fi
}

# Named after everything the environment is made of: the list, the project's own part of pyproject.toml, the place.
find_stamp() {
    echo ".venv/.understudy-$( (
        cat "$list"
        sed '/^\[tool\.ruff\]/,$d' pyproject.toml
        pwd
        echo compiled
    ) | sha256sum | cut -c1-16)"
}

suits() {
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
}

find_python() {
    local candidate
    for candidate in ${PYTHON:-python3 python3.13 python3.12 python3.11}; do
        if suits "$candidate"; then
            echo "$candidate"
            return
        fi
    done
    fail "Python 3.11 or newer is needed; found: $( (python3 --version || echo none) 2>&1)." \
        "Install one (Debian/Ubuntu: apt install python3.12 python3.12-venv), or name one: PYTHON=/path/to/python3.12"
}

has_one_of() {
    local candidate
    for candidate in "$@"; do
        command -v "$candidate" >/dev/null && return
    done
    return 1
}

check_compilers() {
    has_one_of ${CC:-} cc gcc clang \
        || fail "a C compiler is needed, and there is no cc, gcc or clang on PATH:" \
            "vLLM and Triton compile small programs of their own when they run." \
            "Debian/Ubuntu: apt install build-essential    Fedora: dnf install gcc gcc-c++    or: CC=/path/to/cc"
    has_one_of ${CXX:-} g++ clang++ \
        || warn "there is no C++ compiler (g++) on PATH: vLLM's torch.compile will not work" \
            "(Debian/Ubuntu: apt install build-essential)."
}

check_platform() {
    [[ $(uname -s) == Linux ]] || fail "the pinned lists are for Linux; this is $(uname -s)."
    [[ $(uname -m) == x86_64 ]] \
        || warn "the pinned lists were checked on x86_64; this is $(uname -m). Trying."
}

# Ours to throw away: one that was interrupted, one for the other device, one that was moved here from elsewhere.
# The mark goes last, so that an interrupted removal is seen too.
discard_unusable_venv() {
    local stamps=(.venv/.understudy-*)
    [[ -e ${stamps[0]} ]] || return 0
    if [[ -e .venv/.understudy-unfinished ]]; then
        echo "understudy: the last set-up was interrupted; starting afresh."
    elif ! grep -qx "$device" "${stamps[@]}"; then
        echo "understudy: .venv was not made for the $device; starting afresh."
    elif ! grep -qF "$PWD/.venv" .venv/pyvenv.cfg; then
        echo "understudy: .venv was made in another folder; starting afresh."
    elif ! suits .venv/bin/python; then
        echo "understudy: the Python of .venv is gone; starting afresh."
    else
        return 0
    fi
    touch .venv/.understudy-unfinished
    find -H .venv -mindepth 1 -maxdepth 1 ! -name .understudy-unfinished -exec rm -rf {} +
}

make_venv() {
    local python
    if [[ ! -x .venv/bin/python ]]; then
        python=$(find_python)
        "$python" -c 'import ensurepip, venv' 2>/dev/null \
            || fail "$python has no venv module (Debian/Ubuntu: apt install python3-venv)."
        mkdir -p .venv
        touch .venv/.understudy-unfinished
        "$python" -m venv .venv
    fi
    suits .venv/bin/python \
        || fail ".venv has $(.venv/bin/python --version 2>&1 || true), and 3.11 or newer is needed: remove .venv."
    .venv/bin/python -c 'import os, sysconfig; os.stat(sysconfig.get_path("include") + "/Python.h")' 2>/dev/null \
        || warn "this Python has no Python.h: Triton and torch.compile will not work" \
            "(Debian/Ubuntu: apt install python3-dev)."
    touch .venv/.understudy-unfinished
    find .venv -maxdepth 1 -name '.understudy-*' ! -name .understudy-unfinished -delete
}

# --no-compile: compile_all does it, on all cores.
# Hidden is only pip's warning that a folder given as an index does not have a package: one line per package and folder.
pip_install() {
    PIP_DISABLE_PIP_VERSION_CHECK=1 .venv/bin/python -m pip install --no-deps --no-compile "$@" \
        2> >(grep --line-buffered -v 'is ignored: it is neither a file nor a directory' >&2)
}

# torch 2.13.0+cpu is not on the default index: first what this machine's pip knows, then PyTorch's own index.
install_torch_cpu() {
    local torch log=.venv/torch.log
    torch=$(grep '^torch==' "$list")
    if pip_install "$torch" 2>"$log"; then
        rm "$log"
        return
    fi
    echo "        not found at the index that pip uses; trying $TORCH_CPU_INDEX"
    pip_install --index-url "$TORCH_CPU_INDEX" "$torch" && return
    cat "$log" >&2
    fail "could not install $torch: the messages of both tries are above."
}

# Python would compile what it imports and keep it, but not where PYTHONDONTWRITEBYTECODE is set, as in many images:
# there each of a server's processes compiled vLLM anew, 16 s of importing instead of 8 (2 cores). Some files are
# templates, or for another Python, and do not compile.
compile_all() {
    .venv/bin/python -m compileall -qq -j 0 .venv/lib >/dev/null 2>&1 || true
}

verify() {
    VLLM_LOGGING_LEVEL=ERROR .venv/bin/python -P - "$device" <<'PYTHON'
import sys
import torch, vllm, ray, transformers  # noqa: E401
print("        " + ", ".join(f"{m.__name__} {m.__version__}" for m in (torch, vllm, ray, transformers)))
if sys.argv[1] == "gpu" and not torch.cuda.is_available():
    sys.exit("understudy: torch finds no usable GPU here; UNDERSTUDY_DEVICE=cpu sets up for the CPU.")
PYTHON
}

main() {
    device=$(find_device)
    list=deploy/requirements-$device.txt
    stamp=$(find_stamp)
    [[ -e $stamp && ! -e .venv/.understudy-unfinished ]] && exit 0

    trap 'exit 130' INT TERM
    exec 9>.venv.lock
    if ! flock -n 9; then
        echo "understudy: another set-up of this checkout is at work; waiting for it."
        flock 9
    fi
    [[ -e $stamp && ! -e .venv/.understudy-unfinished ]] && exit 0

    check_platform
    check_compilers
    discard_unusable_venv

    step "a Python environment in .venv, for the $device"
    make_venv
    step "installing torch ($(.venv/bin/python --version))"
    if [[ $device == cpu ]]; then
        install_torch_cpu
    else
        pip_install "$(grep '^torch==' "$list")"
    fi
    step "installing the rest of $list ($(grep -c == "$list") packages)"
    pip_install -r "$list"
    step "installing understudy itself"
    pip_install --no-build-isolation --quiet -e .
    step "compiling to bytecode"
    compile_all
    step "trying the imports"
    verify || fail "what was installed does not work here: the message is above."

    echo "$device" >"$stamp"
    rm .venv/.understudy-unfinished
    printf '        done in %d s\n' "$SECONDS"
}

# On one line: Bash reads a script as it runs it, and this one may be replaced by a git pull meanwhile.
main; exit
