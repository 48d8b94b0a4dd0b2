"""Images of finished runs by the shipped classifier and by `benchmarks.judge`: `python -m benchmarks.verdict --help`.

A row for each NAME=PATH, PATH being a folder of PNGs or a file that `python -m ddpm evaluate` reads, and one for the
real test digits, measured as if they were samples.
"""

from benchmarks.common import arguments, check, quality, real_and_named, run, save, show


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("images", nargs="+", metavar="NAME=PATH", help="such as default=data/generated")
    parser.add_argument("--count", type=int, default=10_000, help="the first so many of each (default 10000)")
    given = parser.parse_args()
    check(given.count)
    rows = []
    for name, images in real_and_named(given.images).items():
        rows.append({"images": name} | quality(images[: given.count]))
        save(rows, given.json, {"count": given.count})
        show(rows[-1:])
    show(rows)


if __name__ == "__main__":
    run(main)
