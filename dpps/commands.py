"""The commands that an installation brings: dpps, dpps-metrics, dpps-table, dpps-posterior,
dpps-train, dpps-download, dpps-export."""

# Each imports its program when it is called; torch is loaded after the arguments are read.


def restore() -> int:
    import sample_condition

    return sample_condition.main()


def metrics() -> int:
    from util import compute_metric

    return compute_metric.main()


def table() -> int:
    from util import make_table

    return make_table.main()


def posterior() -> int:
    from util import check_posterior

    return check_posterior.main()


def train() -> int:
    from models import train_prior

    return train_prior.main()


def download() -> int:
    from models import download

    return download.main()


def export() -> int:
    from models import export

    return export.main()
