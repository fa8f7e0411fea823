"""Half of the clients hang up before their answer: the engine must not work for them.

    python -m benchmarks.endurance.disconnects --seconds 30

Poisson arrivals, 1.4 times as many as the service can answer, half of which hang up after a
moment. The service's own counters must account for every network input that the engine ran: it was
answered, or its client hung up during the run (``infer``), or in the moment between the run and the
answer (of which there may be a few). Prints Markdown; the exit status is 1 if
they do not. How many hang up during a run, and waste it, is a matter of how long runs are.
"""

import argparse
import time

from benchmarks.endurance.report import Check, conclude
from benchmarks.endurance.service import IMAGES, running
from benchmarks.load import Target, closed_loop, open_loop

SHARE, TIMES_CAPACITY = 0.5, 1.4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--after-ms", type=float, default=50.0, help="when a client hangs up")
    given = parser.parse_args()
    with running("--self-test-interval-s", "0") as service:
        target = Target(service.port, "/detect", IMAGES)
        rate = closed_loop(target, 10, 16, warmup_s=2).images_per_second
        time.sleep(2)
        first = service.observability.metrics()
        load = open_loop(
            target,
            given.seconds,
            TIMES_CAPACITY * rate,
            disconnect_fraction=SHARE,
            disconnect_after_s=given.after_ms / 1000,
        )
        time.sleep(2)
        last = service.observability.metrics()

    def grown(name: str, **labels: str) -> float:
        return last.total(name, **labels) - first.total(name, **labels)

    ran = grown("centernet_images_total")
    in_queue = grown("centernet_cancelled_inputs_total", stage="queue")
    in_run = grown("centernet_cancelled_inputs_total", stage="infer")
    answered = load.good.count if load.good else 0
    refused = load.statuses[429].count if 429 in load.statuses else 0
    print("| | |\n|---|---|")
    print(f"| capacity | {rate:.1f} images/s |\n| requests | {load.sent} |")
    print(f"| answered 200 | {answered} |\n| hung up | {load.disconnected} |")
    print(f"| refused 429 | {refused} |")
    print(f"| hung up while they waited for the engine | {in_queue:.0f} |")
    print(f"| hung up while it ran | {in_run:.0f} |")
    print(
        f"| hung up before: decoding or on the way | {load.disconnected - in_queue - in_run:.0f} |"
    )
    print(f"| inputs that the engine ran | {ran:.0f} |")
    lost = load.sent - answered - refused - load.disconnected
    surplus = ran - answered - in_run
    conclude(
        [
            Check("ran, neither answered nor given up while running", surplus, most=0.02 * ran),
            Check("neither answered, refused nor hung up", lost, most=0),
        ]
    )


if __name__ == "__main__":
    main()
