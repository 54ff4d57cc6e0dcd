"""What the benchmark reports: rows, their table, and all of it together."""

from dataclasses import dataclass, field

_COLUMNS = (
    ("task", "task", "s"),
    ("mode", "mode", "s"),
    ("batch", "batch", "d"),
    ("step_ms", "step ms", ".1f"),
    ("last_step_ms", "n=50 ms", ".1f"),
    ("forward_ms", "forward", ".1f"),
    ("operator_ms", "operator", ".1f"),
    ("backward_ms", "backward", ".1f"),
    ("candidates_ms", "cand.", ".1f"),
    ("last_candidates_ms", "cand. n=50", ".1f"),
    ("images_per_hour", "images/h", ".2f"),
    ("peak_memory_gib", "GiB", ".2f"),
    ("tflops", "TFLOP/s", ".3f"),
    ("peak_share", "of peak", ".0%"),
    ("speedup", "x plain", ".2f"),
)


@dataclass
class Row:
    """One line of the table; a time is the median over repetitions, None: not measured."""

    task: str
    mode: str
    batch: int
    note: str = ""
    step_ms: float | None = None  # at the step whose number of candidates is nearest the mean
    last_step_ms: float | None = None  # at the last step that chooses among candidates
    forward_ms: float | None = None  # network
    operator_ms: float | None = None  # distance and its gradient with respect to x0_hat
    backward_ms: float | None = None  # network
    candidates_ms: float | None = None  # at the mean number
    last_candidates_ms: float | None = None
    images_per_hour: float | None = None
    peak_memory_gib: float | None = None  # of the GPU, or of this process
    tflops: float | None = None  # of the network's forward and backward, over the whole step
    peak_share: float | None = None  # of the measured bf16 matrix product
    speedup: float | None = None  # images per hour over those of the plain loop


@dataclass
class Report:
    """Everything that one call measured."""

    device: str
    versions: dict[str, str]
    threads: int
    image_size: int
    gflop_per_image: float  # one forward and backward pass of the network
    steps: int  # T that images per hour refer to
    mean_candidates: float
    peak_tflops: float
    rows: list[Row] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def format_row(row: Row) -> str:
    cells = []
    for name, title, form in _COLUMNS:
        value = getattr(row, name)
        text = "-" if value is None else format(value, form)
        cells.append(text.ljust(16) if form == "s" else text.rjust(max(len(title), 7)))
    return "  ".join(cells) + (f"  {row.note}" if row.note else "")


def header() -> str:
    return "  ".join(
        title.ljust(16) if form == "s" else title.rjust(max(len(title), 7))
        for _, title, form in _COLUMNS
    )
