"""The weights that train.init_from names: opened, compared with the config's model, put into a new state."""

import sys

from clip_jax.config.experiment import Config
from clip_jax.inference.load import open_model, with_end_token
from clip_jax.models import ModelConfig
from clip_jax.models.variables import tower_variables
from clip_jax.training.state import TrainState, with_variables
from input_pipeline.tokenizers import Tokenizer


class InitialWeights:
    """Weights of another model, those of train.init_towers, their positions interpolated to the config's sizes.

    Attributes:
      tokenizer: of their text tower; None where it is not taken or no vocabulary is found.

    Raises ValueError for a name or path that `open_model` cannot open.
    """

    def __init__(self, config: Config):
        model, self._towers = config.model, config.train.init_towers
        self._name = config.train.init_from
        self._pretrained, tokenizer = open_model(
            self._name,
            image_size=model.vision.image_size if "visual" in self._towers else None,
            context_length=model.text.context_length if "text" in self._towers else None,
            param_dtype=model.param_dtype,
        )
        self.tokenizer = tokenizer if "text" in self._towers else None
        given = self._pretrained.transform
        if "visual" in self._towers and given != (own := type(given)()):
            print(
                f"train.init_from={self._name} was trained on pictures prepared by {given}; this run, its evaluation "
                f"and what is exported of it prepare them by {own}",
                file=sys.stderr,
            )

    def check(self, model: ModelConfig, tokenizer: Tokenizer) -> None:
        """Raises ValueError when what is taken is not the config's model, or was trained on another vocabulary.

        model: the run's, with its end token. tokenizer: the run's.
        """
        given = with_end_token(self._pretrained.config, tokenizer)
        if differing := given.differences(model, self._towers):
            raise ValueError(f"train.init_from={self._name} is not the config's model: {'; '.join(differing)}")
        if self.tokenizer and self.tokenizer.fingerprint() != tokenizer.fingerprint():
            raise ValueError(
                f"train.init_from={self._name} was trained on another vocabulary ({self.tokenizer.kind}): set "
                "data.tokenizer and data.tokenizer_file to it"
            )

    def put_into(self, state: TrainState) -> TrainState:
        """The state with these weights; the temperature and bias, too, where both towers are taken."""
        given = self._pretrained.variables
        return with_variables(state, given if len(self._towers) == 2 else tower_variables(given, self._towers))
