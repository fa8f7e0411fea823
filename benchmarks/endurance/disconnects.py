"""Clients that disconnect before the response must not cost engine time.

    python -m benchmarks.endurance.disconnects --seconds 30

Requests arrive at Poisson-distributed times at 1.4 times the capacity of the service, and half of
the clients disconnect after a short time. The metrics of the service must account for every network
input that the engine ran: its client got a response, disconnected during the run (stage ``infer``),
or, in a few cases, between the run and the response. The number of clients that disconnect during a
run depends on the duration of runs and is not checked. Prints Markdown; the exit status is 1 if a
check fails.
"""

import argparse
import time

from benchmarks.endurance.report import Check, exit_with_checks
from benchmarks.endurance.service import IMAGES, run_service
from benchmarks.load import Target, closed_loop, open_loop
from evaluation.report import Cell, markdown_table

DISCONNECT_FRACTION, TIMES_CAPACITY = 0.5, 1.4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--after-ms", type=float, default=50.0, help="when clients disconnect")
    args = parser.parse_args()
    with run_service("--self-test-interval-s", "0") as service:
        target = Target(service.port, "/detect", IMAGES)
        rate = closed_loop(target, 10, 16, warmup_s=2).images_per_second
        time.sleep(2)
        before = service.metrics()
        load = open_loop(
            target,
            args.seconds,
            TIMES_CAPACITY * rate,
            disconnect_fraction=DISCONNECT_FRACTION,
            disconnect_after_s=args.after_ms / 1000,
        )
        time.sleep(2)
        after = service.metrics()

    def increase(name: str, **labels: str) -> float:
        return after.total(name, **labels) - before.total(name, **labels)

    ran = increase("centernet_images_total")
    in_queue = increase("centernet_cancelled_inputs_total", stage="queue")
    in_run = increase("centernet_cancelled_inputs_total", stage="infer")
    completed = load.ok.count if load.ok else 0
    rejected = load.statuses[429].count if 429 in load.statuses else 0
    elsewhere = load.disconnected - in_queue - in_run
    rows: list[tuple[str, Cell]] = [
        ("capacity", f"{rate:.1f} images/s"),
        ("requests", load.sent),
        ("status 200", completed),
        ("disconnected", load.disconnected),
        ("status 429", rejected),
        ("disconnected while queued", f"{in_queue:.0f}"),
        ("disconnected during the engine run", f"{in_run:.0f}"),
        ("disconnected before: during decoding or upload", f"{elsewhere:.0f}"),
        ("inputs that the engine ran", f"{ran:.0f}"),
    ]
    print(markdown_table(("", ""), rows))
    lost = load.sent - completed - rejected - load.disconnected
    surplus = ran - completed - in_run
    exit_with_checks(
        [
            Check("inputs run without a response or a disconnect", surplus, max=0.02 * ran),
            Check("requests without a response, rejection or disconnect", lost, max=0),
        ]
    )


if __name__ == "__main__":
    main()
