"""Compile proto/ into exporter/pb/: `python proto/generate.py`, or with `--check` only compare (exit 1 = out of date).

protoc names a Python module after the path it was given, so every file is presented to it under the path its module
shall have (`generate_v3.proto` → `exporter.pb.generate_v3_pb2`). The same path is its name in the descriptor pool,
where two files called generate.proto could not live in one process.
"""

import argparse
import sys
import tempfile
from importlib.resources import files
from pathlib import Path

from grpc_tools import protoc  # type: ignore[import-untyped, unused-ignore]

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = Path("exporter/pb")
SOURCES = {
    "fmaas": "proto/fmaas/generation.proto",
    "generate_v2": "proto/generate/v2/generate.proto",
    "generate_v3": "proto/generate/v3/generate.proto",
    "prometheus": "proto/prometheus/metrics.proto",
    "sglang_scheduler": "proto/sglang/scheduler.proto",
    "vllm_engine": "proto/vllm/engine.proto",
    "vllm_inference": "proto/vllm/inference.proto",
}


def compile_into(directory: Path) -> list[Path]:
    """Write `*_pb2.py` and `*_pb2.pyi` of every source under `directory`; answers their paths relative to it."""
    for name, source in SOURCES.items():
        wanted = f"{PACKAGE}/{name}.proto"
        status = protoc.main(
            [
                "protoc",
                f"--proto_path={wanted}={ROOT / source}",
                f"--proto_path={files('grpc_tools') / '_proto'}",
                f"--python_out={directory}",
                f"--pyi_out={directory}",
                wanted,
            ]
        )
        if status != 0:
            raise SystemExit(f"protoc failed on {source}")
    return [PACKAGE / f"{name}_pb2{suffix}" for name in SOURCES for suffix in (".py", ".pyi")]


def stale_files() -> list[Path]:
    """The generated files which differ from what proto/ says, are missing, or have no source any more."""
    with tempfile.TemporaryDirectory() as temporary:
        fresh = compile_into(Path(temporary))
        stale = [
            path
            for path in fresh
            if not (ROOT / path).exists() or (ROOT / path).read_bytes() != (Path(temporary) / path).read_bytes()
        ]
    present = [path.relative_to(ROOT) for path in (ROOT / PACKAGE).glob("*_pb2*.py*")]
    return sorted([*stale, *(path for path in present if path not in fresh)])


def main() -> int:
    parser = argparse.ArgumentParser(description="Compile proto/ into exporter/pb/.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 and list the files that differ")
    if parser.parse_args().check:
        stale = stale_files()
        for path in stale:
            print(f"{path} differs from proto/: run python proto/generate.py", file=sys.stderr)
        return 1 if stale else 0
    compile_into(ROOT)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
