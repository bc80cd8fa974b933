"""Rules of edits: those of every config, and those of a config that edits images."""

from diffussm_jax.config.drawn import as_drawn
from diffussm_jax.config.parsing import require
from diffussm_jax.config.schema import Config

# Kinds of edits that find the noise of an image.
INVERTING = ("invert", "interpolate", "vary")
# Samplers whose step is a function of x_t alone, and can be reversed.
_REVERSIBLE = {"gaussian": ("ddim", "heun"), "flow": ("euler", "heun"), "mean_flow": ("euler",)}


def check_editing(config: Config) -> None:
    """Check the values of the edit section."""
    edit, num_classes = config.edit, config.data.num_classes
    require(edit.strength <= 1, "edit.strength", "be at most 1", edit.strength)
    has_place = edit.kind in ("inpaint", "outpaint")
    demand = "be None unless edit.kind is inpaint or outpaint"
    require(has_place or edit.rectangle is None, "edit.rectangle", demand, edit.rectangle)
    demand = "be given for edit.kind = 'outpaint': the place of the image among what is drawn"
    is_placed = edit.rectangle is not None or edit.kind != "outpaint"
    require(is_placed, "edit.rectangle", demand)
    demand = "be 'list' where edit.classes is given, and there alone"
    fits = (edit.labels == "list") == (edit.classes is not None)
    require(fits, "edit.labels", demand, edit.labels, edit.classes)
    demand = "be 'none' where data.num_classes is 0"
    require(num_classes > 0 or edit.labels == "none", "edit.labels", demand, edit.labels)
    demand = f"be below data.num_classes = {num_classes}"
    is_below = all(y < num_classes for y in edit.classes or ())
    require(is_below, "edit.classes", demand, edit.classes)
    is_below = edit.target is None or edit.target < num_classes
    require(is_below, "edit.target", demand, edit.target)


def require_fitting(config: Config) -> None:
    """Raise ConfigError if the rectangle leaves the images that are drawn."""
    height, width = as_drawn(config.sample, config).data.sides
    top, left, rows, columns = config.edit.rectangle or (0, 0, height, width)
    demand = f"be (top, left, height, width) of pixels in an image of {height} x {width}"
    fits = rows > 0 and top + rows <= height and columns > 0 and left + columns <= width
    require(fits, "edit.rectangle", demand, config.edit.rectangle)


def require_editable(config: Config) -> None:
    """Check what an edit needs of the sampler and the model.

    Raises:
        ConfigError: in one line that names the field to change.
    """
    edit, sample, process = config.edit, config.sample, config.diffusion.process
    named = f"for edit.kind = {edit.kind!r}"
    demand = "be None in an edit: the images that it begins with have edges"
    require(sample.wrap is None, "sample.wrap", demand, sample.wrap)
    if edit.kind in INVERTING:
        samplers = _REVERSIBLE[process]
        demand = f"be {' or '.join(samplers)} {named}, which reverses the sampler's steps"
        require(sample.sampler in samplers, "sample.sampler", demand, sample.sampler)
        is_noisy = sample.sampler == "ddim" and sample.eta > 0
        require(not is_noisy, "sample.eta", f"be 0 {named}: noise has no reverse", sample.eta)
    if edit.kind in ("inpaint", "outpaint") and edit.resamplings > 1:
        demand = f"be a sampler of single steps {named} with edit.resamplings above 1"
        is_single = sample.sampler != "dpm_solver++"
        require(is_single, "sample.sampler", demand, sample.sampler)
    has_null = config.data.num_classes == 0 or config.training.label_dropout > 0
    is_told = edit.labels != "none" or (edit.target is not None and edit.kind not in INVERTING)
    demand = "be folders or list: the model has not learned images without a label"
    require(has_null or is_told, "edit.labels", demand, edit.labels)
