#!/usr/bin/env bash
# Every machine: an environment with the project, from its constraints file. Does nothing where it is there already.
set -euo pipefail
cd "$(dirname "$0")/.."
environment=${MCRNN_ENVIRONMENT:-$HOME/.mcrnn-environment}
# so that `ray down`, `ray exec` and `ray attach` find it
line="export PATH=\"$environment/bin:\$PATH\""
grep -qxF "$line" ~/.bashrc 2>/dev/null || echo "$line" >> ~/.bashrc
wanted=$(cat pyproject.toml constraints.txt | sha256sum)
if [ "$(cat "$environment/.mcrnn" 2>/dev/null)" != "$wanted" ]; then
    if ! python3 -c "import ensurepip" 2> /dev/null; then # Debian and Ubuntu have it in a package of its own
        sudo apt-get -o DPkg::Lock::Timeout=600 update -qq
        sudo DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=600 install -y -qq python3-venv
    fi
    python3 -m venv "$environment"
    "$environment/bin/python" -m pip install --quiet --constraint constraints.txt --editable '.[cluster,serve]'
    echo "$wanted" > "$environment/.mcrnn"
fi
