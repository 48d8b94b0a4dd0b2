"""Images of finished runs by the shipped classifier and by `benchmarks.judge`: `python -m benchmarks.verdict --help`.

A row for each NAME=PATH, PATH being a folder of PNGs or a file that `python -m ddpm evaluate` reads, and one for the
real test digits, measured as if they were samples. Rows of other names that the file of --json has stay.
"""

from benchmarks.common import arguments, check, earlier, quality, real_and_named, run, save, show


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("images", nargs="+", metavar="NAME=PATH", help="such as default=data/generated")
    parser.add_argument("--count", type=int, default=10_000, help="the first so many of each (default 10000)")
    given = parser.parse_args()
    check(given.count)
    rows = {row["images"]: row for row in earlier(given.json, {"count": given.count})}
    for name, images in real_and_named(given.images).items():
        rows[name] = {"images": name} | quality(images[: given.count])
        save(list(rows.values()), given.json, {"count": given.count})
        show([rows[name]])
    show(list(rows.values()))


if __name__ == "__main__":
    run(main)
