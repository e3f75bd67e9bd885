#!/bin/sh
# Make a virtual environment with everything pinned in requirements/ and this package, editable.
# Usage: [PYTHON=python3.12] [DETECTRON2=PIP_REQUIREMENT] sh tools/setup_env.sh VENV_FOLDER
# A second run does nothing. Every failure ends in one line that says what is missing.
set -eu

VENV=$1
NEEDED_GB=8 # torch's CUDA build takes 5.5 of them
LOG=$VENV/setup.log
STAMP=$VENV/setup-done

fail() {
    echo "setup: $*" >&2
    exit 1
}

is_new_enough() {
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null
}

version_of() {
    "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null
}

find_python() {
    if [ -n "${PYTHON:-}" ]; then
        command -v "$PYTHON" >/dev/null 2>&1 || fail "PYTHON=$PYTHON is not a program on this machine"
        is_new_enough "$PYTHON" ||
            fail "PYTHON=$PYTHON is Python $(version_of "$PYTHON"); 3.10 or newer is needed"
        echo "$PYTHON"
        return
    fi
    for candidate in python3 python python3.13 python3.12 python3.11 python3.10 python3.14; do
        if command -v "$candidate" >/dev/null 2>&1 && is_new_enough "$candidate"; then
            echo "$candidate"
            return
        fi
    done
    fail "no Python 3.10 or newer found (python3 is $(version_of python3 || echo absent));" \
        "install one and run 'make setup PYTHON=/path/to/python3'"
}

fingerprint() {
    # what is installed: the pins, the package's own metadata, the Detectron2 asked for
    cat requirements/*.txt setup.py | cksum
    pwd # the package is installed as a link to this folder
    echo "$1"
}

step() {
    # step MESSAGE COMMAND...: run the command with its output in the log; explain a failure
    echo "setup: $1"
    shift
    if ! "$@" >>"$LOG" 2>&1; then
        if grep -qi 'no space left on device' "$LOG"; then
            fail "the disk is full: $(free_gb) GB free here, about $NEEDED_GB needed (log: $LOG)"
        elif grep -q 'DO NOT MATCH THE HASHES' "$LOG"; then
            fail "a download does not match its pinned sha256 and was refused (log: $LOG)"
        elif grep -Eqi 'connection|timed out|resolution|no matching distribution|http error|proxy' "$LOG"
        then
            fail "a download failed: $(grep -Ei '^ *error' "$LOG" | tail -n 1 | cut -c1-300)" \
                "- check the network and pip's index settings, then run make setup again (log: $LOG)"
        fi
        fail "$1 $2 failed: $(grep -v '^ *$' "$LOG" | tail -n 1 | cut -c1-300) (log: $LOG)"
    fi
}

free_gb() {
    df -Pk . | awk 'NR == 2 { printf "%d", $4 / 1048576 }'
}

install_detectron2() {
    # $1: '' for the pinned wheel, else a pip requirement
    "$VENV/bin/python" -m pip uninstall -y -q detectron2 sal-detectron2
    if [ -n "$1" ]; then
        "$VENV/bin/python" -m pip install --no-build-isolation "$1"
    else
        site=$("$VENV/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
        "$VENV/bin/python" -m pip install --upgrade --no-deps --require-hashes \
            --only-binary=:all: --python-version 3.10 --target "$site" \
            -r requirements/detectron2.txt
    fi
}

# An installed environment keeps the Detectron2 that it was made with unless another is asked for.
detectron2=${DETECTRON2:-}
if [ -z "$detectron2" ] && [ -f "$STAMP" ]; then
    detectron2=$(tail -n 1 "$STAMP")
fi
if [ -x "$VENV/bin/python" ] && [ -n "${PYTHON:-}" ]; then
    python=$(find_python)
    [ "$(version_of "$python")" = "$(version_of "$VENV/bin/python")" ] ||
        fail "$VENV was made with Python $(version_of "$VENV/bin/python")," \
            "PYTHON=$PYTHON is $(version_of "$python"): remove $VENV first"
fi
if [ -f "$STAMP" ] && [ "$(cat "$STAMP")" = "$(fingerprint "$detectron2")" ]; then
    exit 0
fi

if ! [ -x "$VENV/bin/pip" ]; then
    python=$(find_python)
    [ "$(free_gb)" -ge "$NEEDED_GB" ] ||
        fail "the disk is full: $(free_gb) GB free here, about $NEEDED_GB needed"
    rm -rf "$VENV"
    mkdir -p "$VENV"
    step "making $VENV with Python $(version_of "$python")" "$python" -m venv "$VENV"
fi
rm -f "$STAMP"
: >"$LOG"
[ -x "$VENV/bin/pip" ] || fail "Python's venv module made no pip (Debian: apt install python3-venv)"
step "installing pinned requirements (torch is large: minutes on a slow line)" \
    "$VENV/bin/python" -m pip install -r requirements/runtime.txt -r requirements/dev.txt
step "installing reference networks for the tests" \
    "$VENV/bin/python" -m pip install --no-deps -r requirements/references.txt
step "installing Detectron2${detectron2:+ from $detectron2}" install_detectron2 "$detectron2"
step "installing resnext_det, editable" \
    "$VENV/bin/python" -m pip install --no-deps --no-build-isolation -e .
"$VENV/bin/python" -m resnext_det.doctor >>"$LOG" 2>&1 ||
    fail "the environment is incomplete: run $VENV/bin/python -m resnext_det.doctor"
fingerprint "$detectron2" >"$STAMP.tmp"
mv "$STAMP.tmp" "$STAMP"
echo "setup: done, in $VENV"
