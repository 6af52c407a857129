"""Where the commands of these tests run, what they are told, and all that they wrote."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ACCESS_KEY = "AKIAHIDDENHIDDEN0001"
SECRET_KEY = "s3cr3t/keys+have=such/signs0000000000001"
PASSWORD = "pa:ss/w@rd%2B+word"

TINY = """
name: tiny
data: {name: digits, train_limit: 200}
teacher: {arch: cifar_resnet8, epochs: 1, batch_size: 32}
space: {widths: [0.25, 0.5], optim: {batch_size: 32}}
objectives: [val_accuracy, latency_ms]
budget: {trials: 2, epochs: 1, grace_epochs: 1}
costs: {batch_size: 4, seconds: 0.1}
runtime: {device: cpu, precision: fp32, layout: contiguous, optimizer: foreach, compile: "off"}
resources: {concurrent: 2}
"""


@dataclass
class Ended:
    """How a command ended, and all it wrote."""

    code: int
    output: str


@dataclass
class Place:
    """What every process of a test is told, and what all of them wrote."""

    env: dict[str, str]
    s3: Any
    folder: Path
    outputs: list[str] = field(default_factory=list)

    def bucket(self, name: str) -> str:
        self.s3.create_bucket(Bucket=name)
        return f"s3://{name}/runs/first"

    def objects(self, bucket: str) -> dict[str, bytes]:
        """Names and contents of all objects."""
        pages = self.s3.get_paginator("list_objects_v2").paginate(Bucket=bucket)
        names = [each["Key"] for page in pages for each in page.get("Contents", [])]
        return {name: self.s3.get_object(Bucket=bucket, Key=name)["Body"].read() for name in names}

    def ama(self, *arguments: object, **env: str) -> Ended:
        """Run the command as from a shell."""
        command = [sys.executable, "-m", "search.cli.app", *map(str, arguments)]
        done = subprocess.run(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=self.folder,
            env={**os.environ, **self.env, **env},
        )
        self.outputs.append(done.stdout)
        return Ended(done.returncode, done.stdout)
