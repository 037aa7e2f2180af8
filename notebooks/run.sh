#!/usr/bin/env bash
# Run a notebook unattended and keep the executed copy. Give parameters as papermill takes them, or in the environment
# with names in capitals. Paths are relative to notebooks/. Copies go to OUTDIR (default: notebooks/executed).
#   notebooks/run.sh depth_table -p depths "16 40" -p seeds 0
#   DEPTHS="16 40" SEEDS=0 notebooks/run.sh depth_table
set -euo pipefail
notebooks=$(cd "$(dirname "$0")" && pwd)
name=$(basename "${1-}" .ipynb) known=$(cd "$notebooks" && echo *.ipynb) known=${known//.ipynb/}
if [[ ! -f $notebooks/$name.ipynb ]]; then
    echo "run.sh: notebook '$name' is not known; one of ${known// /, }" >&2
    exit 2
fi
folder=${OUTDIR:-$notebooks/executed}
mkdir -p "$folder"
copy=$folder/$(date +%Y-%m-%d_%H-%M-%S)_$name.ipynb
(set -o noclobber && : >"$copy") 2>/dev/null || copy=${copy%.ipynb}_$$.ipynb # another run started in the same second
trap '[[ -s $copy ]] || rm -f "$copy"' EXIT
papermill --no-progress-bar --start-timeout 600 --cwd "$notebooks" "$notebooks/$name.ipynb" "$copy" "${@:2}"
echo "wrote $copy"
