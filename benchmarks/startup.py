"""Seconds until a command has ended, beside ``import torch``: medians of interleaved processes.

    python benchmarks/startup.py [rounds, default: 5]

Each round starts every command once, so that all of them meet the same machine. The first round is not counted.
"""

import statistics
import subprocess
import sys
import tempfile
import time

COMMANDS = {
    "import torch": ["-c", "import torch"],
    "import resvae": ["-c", "import resvae"],
    "from resvae import VAE, load": ["-c", "from resvae import VAE, load"],
    "resvae --help": ["-m", "resvae", "--help"],
    "resvae --version": ["-m", "resvae", "--version"],
    "resvae fit --help": ["-m", "resvae", "fit", "--help"],
    "resvae sample digits": ["-m", "resvae", "sample", "digits"],
}


def seconds(arguments: list[str], folder: str) -> float:
    """The wall time of one process."""
    start = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, capture_output=True, cwd=folder)
    return time.perf_counter() - start


def main(rounds: int = 5) -> None:
    """Print the table."""
    times: dict[str, list[float]] = {name: [] for name in COMMANDS}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(rounds + 1):
            for name, arguments in COMMANDS.items():
                took = seconds(arguments, folder)
                times[name] += [took] if number else []
    print(f"| command | seconds, median of {rounds} | smallest to largest | / import torch |\n|-|-|-|-|")
    torch = statistics.median(times["import torch"])
    for name, values in times.items():
        median = statistics.median(values)
        print(f"| `{name}` | {median:.2f} | {min(values):.2f} to {max(values):.2f} | {median / torch:.2f} |")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
