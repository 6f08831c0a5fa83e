#!/usr/bin/env bash
# onnxruntime 1.31.1 (Linux wheel from the package index): importing it, without any session, makes an identifier of the
# device and a database of events in the user's cache folder. With ORT_DISABLE_TELEMETRY=1 at the import it makes none.
#
# Images of containers that are built with an import, as a check, all hold the same identifier; folders that must stay
# as they are do not.
#
# Seen (onnxruntime 1.31.1): ~/.cache/Microsoft/DeveloperTools/.onnxruntime/deviceid and onnxruntime.db; or nothing.
# Fails when this changes.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q numpy==2.4.6 onnxruntime==1.31.1
mkdir "$work/told" "$work/not-told"
env -u XDG_CACHE_HOME HOME="$work/told" "$work/venv/bin/python" -c "import onnxruntime"
env -u XDG_CACHE_HOME HOME="$work/not-told" ORT_DISABLE_TELEMETRY=1 "$work/venv/bin/python" -c "import onnxruntime"
echo "by an import: $(cd "$work/told" && find . -type f | sort | tr '\n' ' ')"
echo "with ORT_DISABLE_TELEMETRY=1: $(cd "$work/not-told" && find . -type f | sort | tr '\n' ' ')"
test -f "$work/told/.cache/Microsoft/DeveloperTools/.onnxruntime/deviceid"
test -z "$(find "$work/not-told" -type f)"
echo "as described"
