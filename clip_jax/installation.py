"""The distribution that this package is installed from, and checks that no other one shares its folders.

On the package index `clip-jax` is another project, whose package is `clip_jax` as well; this one is `jax-clip`.
"""

import glob
import importlib.util
import os
import sys

DISTRIBUTION = "jax-clip"
__version__ = "0.1.0"
ROOT = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))


def version_line() -> str:
    """Name and version of the distribution, the folder it runs from, and the Python and JAX it runs on."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        jax = f"JAX {version('jax')}"
    except PackageNotFoundError:
        jax = "no JAX"
    return f"{DISTRIBUTION} {__version__} ({ROOT}), Python {sys.version.split()[0]}, {jax}"


def skip_missing_tpu() -> None:
    """Where libtpu is installed, as with the extra `test`, and neither TPU nor GPU is there, JAX takes the CPU without
    loading libtpu, which else fills the terminal with lines about the TPU that it does not find."""
    if "JAX_PLATFORMS" in os.environ or not importlib.util.find_spec("libtpu"):
        return
    gpus = ("/dev/nvidiactl", "/dev/nvidia0", "/dev/kfd", "/dev/dxg")
    vendors = glob.glob("/sys/bus/pci/devices/*/vendor") + glob.glob("/dev/accel*") + glob.glob("/dev/vfio/[0-9]*")
    if not any(map(os.path.exists, gpus)) and not any(map(_may_be_tpu, vendors)):
        os.environ["JAX_PLATFORMS"] = "cpu"


def _may_be_tpu(file: str) -> bool:
    if file.startswith("/dev/"):
        return True
    try:
        with open(file, encoding="ascii") as vendor:
            return vendor.read().strip() == "0x1ae0"  # Google's; also its virtual network cards
    except OSError:
        return True


def check_distributions() -> None:
    """Raises ImportError where the other project `clip-jax`, or an earlier copy of this one under its name, has
    installed files: which of the two is imported, or overwrites the other, then depends on the order of things."""
    for folder in dict.fromkeys(sys.path):
        try:
            names = os.listdir(folder or ".")
        except OSError:  # a zip file, or nothing
            continue
        for name in names:
            if name.startswith("clip_jax-") and name.endswith(".dist-info") and _has_package(folder, name):
                raise ImportError(
                    f"the distribution clip-jax in {folder or '.'} has a package clip_jax, too, whose files mix with "
                    f"those of {DISTRIBUTION} in {ROOT}: pip uninstall clip-jax, then install {DISTRIBUTION} again"
                )


def _has_package(folder: str, name: str) -> bool:
    """Whether a distribution has put files into a folder clip_jax; an editable installation of a clone has not."""
    try:
        with open(os.path.join(folder, name, "RECORD"), encoding="utf-8") as record:
            return any(line.startswith("clip_jax/") for line in record)
    except OSError:  # some packagers leave the list out
        return True


def check_top_level() -> None:
    """Raises ImportError where `configs` or `input_pipeline`, which stand beside this package, are another's."""
    for name in ("configs", "input_pipeline"):
        spec = importlib.util.find_spec(name)
        found = os.path.dirname(os.path.realpath(spec.origin)) if spec and spec.origin else None
        if found != os.path.join(ROOT, name):
            raise ImportError(
                f"the package {name} that belongs to clip_jax, in {ROOT}, is hidden by {found or 'nothing'}: start the "
                "command in another folder, or rename or uninstall the other package"
            )
