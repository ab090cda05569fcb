"""Compresses a folder of models on a Ray cluster, one task per model.

    python examples/many_models_ray.py MODELS OUTPUT [--address auto] [--level default]

Both folders must be seen by all machines under the same path. Models are independent: each appears
in the output when it is complete, so that the job may be stopped, or lose machines, at any time;
started again, it takes what is missing and what has changed.
"""

import argparse

import ray

import neuzip_rs as nz


@ray.remote(num_cpus=1, max_retries=2)
def compress(root: str, output: str, name: str, level: str) -> nz.models.Record:
    """Compresses one model, on whatever machine has a core to spare."""
    # One thread for each task: the tasks are what keeps the cores busy.
    return nz.models.compress(root, output, name, level=level, threads=1)


def main() -> None:
    """Hands out the models and collects what was done."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("root", help="folder with models below it")
    parser.add_argument("output", help="folder for the compressed ones")
    parser.add_argument("--address", help="of the cluster; by default one is started here")
    parser.add_argument("--workers", type=int, help="of a cluster that is started here")
    parser.add_argument("--level", default="default", choices=["fast", "default", "max"])
    options = parser.parse_args()

    workers = None if options.address else options.workers
    ray.init(address=options.address, num_cpus=workers, include_dashboard=False)
    names = nz.models.find(options.root)
    waiting = {
        compress.remote(options.root, options.output, name, options.level): name for name in names
    }
    records = nz.models.read(options.output)
    failed = []
    while waiting:
        (task,), _ = ray.wait(list(waiting), num_returns=1)
        name = waiting.pop(task)
        try:
            record = records[name] = ray.get(task)
        except ray.exceptions.RayError as error:
            failed.append(name)
            print(f"{name}: {error}")
            continue
        share = 100 * record.stored_bytes / max(1, record.original_bytes)
        print(f"{name}: {record.original_bytes} -> {record.stored_bytes} bytes ({share:.1f} %)")
    nz.models.write(options.output, records.values())
    ray.shutdown()
    if failed:
        message = f"{len(failed)} of {len(names)} models failed; the rest is done"
        raise SystemExit(message)


if __name__ == "__main__":
    main()
