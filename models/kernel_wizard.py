"""The external network that the operator nonlinear_blur is ("bkse", Tran et al. 2021)."""

from torch import nn

from util.config.schema import read_yaml
from util.errors import UserError
from util.tensor_files import load_tensors


def load_kernel_wizard(opt_yml_path: str) -> nn.Module:
    """The blur network that an options file names; UserError saying what is missing."""
    source = "github.com/VinAIResearch/blur-kernel-space-exploring"
    try:
        from bkse.models.kernel_encoding.kernel_wizard import KernelWizard
    except ImportError as error:
        raise UserError(
            f"nonlinear_blur: needs the external code of {source}: put it into a folder named "
            f"bkse here and install what it needs ({error})"
        ) from None
    options = read_yaml(opt_yml_path).get("KernelWizard")
    if not isinstance(options, dict) or "pretrained" not in options:
        raise UserError(
            f"{opt_yml_path}: expected a section KernelWizard with a key pretrained, the "
            f"checkpoint's path (see {source})"
        )
    model = KernelWizard(options)
    model.load_state_dict(load_tensors(options["pretrained"]))
    return model.eval().requires_grad_(False)
