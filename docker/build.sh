#!/usr/bin/env bash
# Builds an image and tags it megagpt-KIND:VERSION-HASH, with -dirty where the working tree differs from the commit.
#
#   bash docker/build.sh cpu
#   bash docker/build.sh train --build-arg TORCH_CUDA_ARCH_LIST=9.0      further arguments go to docker build
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

kind=${1-}
[ -f "docker/Dockerfile.$kind" ] || { echo "build.sh: no image '$kind'; the images are: cpu train" >&2; exit 1; }
version=$(sed -n 's/^__version__ = "\(.*\)"/\1/p' megagpt/__init__.py)
commit=$(git rev-parse --short HEAD)
[ -z "$(git status --porcelain)" ] || commit=$commit-dirty
tag=megagpt-$kind:$version-$commit

docker build --file "docker/Dockerfile.$kind" --tag "$tag" --label "org.opencontainers.image.revision=$commit" "${@:2}" .
echo "$tag"
