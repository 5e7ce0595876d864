"""Certificates for the tests, made by the real openssl: an authority of ours, a server, clients of every sort."""

import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests.real_parts import real_part

NEW_KEY = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes"


@dataclass(frozen=True, slots=True)
class Pair:
    certificate: Path
    key: Path


@dataclass(frozen=True, slots=True)
class Authority:
    """Signs certificates into a folder of its own."""

    folder: Path
    own: Pair

    @classmethod
    def found(cls, folder: Path, name: str = "ours") -> "Authority":
        own = Pair(folder / f"{name}.crt", folder / f"{name}.key")
        _openssl(
            f"req -x509 {NEW_KEY} -days 2 -subj /CN={name} -keyout {own.key} -out {own.certificate} "
            "-addext basicConstraints=critical,CA:TRUE"
        )
        return cls(folder, own)

    def sign(self, name: str, alternative: str = "", expired: bool = False, serial: int = 1) -> Pair:
        """A certificate for `name`, with the alternative names given as openssl writes them: `DNS:a,IP:127.0.0.1`."""
        pair = Pair(self.folder / f"{name}-{serial}.crt", self.folder / f"{name}-{serial}.key")
        request = self.folder / f"{name}.csr"
        _openssl(f"req {NEW_KEY} -subj /CN={name} -keyout {pair.key} -out {request}")
        extensions = self.folder / f"{name}.ext"
        extensions.write_text(f"subjectAltName={alternative}\n" if alternative else "basicConstraints=CA:FALSE\n")
        # openssl x509 cannot backdate; a validity of no days at all has ended once the second is over.
        days = "-days 0" if expired else "-days 2"
        _openssl(
            f"x509 -req -in {request} -CA {self.own.certificate} -CAkey {self.own.key} -set_serial {serial} {days} "
            f"-extfile {extensions} -out {pair.certificate}"
        )
        return pair


def _openssl(arguments: str) -> None:
    done = subprocess.run([real_part("openssl"), *arguments.split()], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
