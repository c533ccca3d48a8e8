"""Transcribe many files on a Ray cluster, one model per actor. Needs `pip install ray`.

python examples/batch_ray.py a.mp3 b.mp3 c.mp3
"""

import sys

import slipstream

try:
    import ray
    from ray.util import ActorPool
except ImportError:
    sys.exit("this example needs Ray: pip install ray")


@ray.remote(num_cpus=2)
class Worker:
    def __init__(self, model: str) -> None:
        self.transcriber = slipstream.load(model)

    def transcribe(self, path: str) -> str:
        return f"{path}: {self.transcriber.transcribe(path).text}"


def main(*paths: str, model: str = "tiny", workers: int = 2) -> None:
    pool = ActorPool([Worker.remote(model) for _ in range(workers)])
    for line in pool.map_unordered(lambda worker, path: worker.transcribe.remote(path), paths):
        print(line)


if __name__ == "__main__":
    main(*sys.argv[1:])
