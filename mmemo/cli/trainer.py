"""``mmemo fit | validate | test | predict``: LightningCLI, with a short help and fast answers to wrong options."""

from __future__ import annotations

import ast
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from mmemo.cli.output import reject_option

Options = Annotated[str, Parameter(allow_leading_hyphen=True, show=False)]

HELP = """Usage: mmemo {verb} --config experiment.yaml [OPTIONS]

{summary}

Every setting of the YAML is also an option, such as --data.batch_size 8.

Common options
  --config FILE                     YAML of the experiment; see configs/
  --trainer.default_root_dir DIR    run folder
  --trainer.max_epochs N            epochs of training
  --trainer.accelerator NAME        cpu, gpu or auto
  --trainer.devices N               devices that train one model
  --trainer.precision NAME          32-true, bf16-mixed, ...
  --data.manifest FILE              CSV or Parquet, one row per utterance
  --data.classes LIST               emotion classes, in the order of the outputs
  --data.split CLASS                how rows are divided, such as mmemo.data.GroupKFold
  --data.batch_size N               utterances per step
  --model.init_args.OPTION VALUE    options of the system: mixup, by_modality, hooks, ...
  --seed_everything N               seed of weights, dropout and augmentation
  --checkpoint best|last            checkpoint that test and predict use
  --ckpt_path FILE                  another checkpoint; `fit --ckpt_path last` resumes
  --monitor METRIC                  validation metric that chooses the best epoch
  --patience N                      stop after N epochs without an improvement
  --study FILE                      clinical study: outcome, participants, visits
  --offline true                    forbid every network connection
{own}
  --help_all                        every option of every part (several hundred lines)
  --print_config                    print the complete YAML and exit
"""
SUMMARIES = {
    "fit": "Trains a model and writes config, logs and checkpoints into the run folder.",
    "validate": "Evaluates the run's checkpoint on the validation rows.",
    "test": "Evaluates the run's checkpoint on the test rows; writes test_metrics.json.",
    "predict": "Predicts with the run's checkpoint; writes one row per utterance.",
}
OWN_OPTIONS = {
    "fit": "  --overwrite true                  replace the run in the folder\n",
    "predict": (
        "  --data.predict_on SIDE            all, train, val or test\n"
        "  --predictions FILE                .csv or .parquet\n"
        "  --gates FILE                      gate values of every utterance\n"
        "  --embeddings FILE                 fused vector of every utterance\n"
        "  --pseudo_labels FILE              manifest with the predictions as labels\n"
        "  --min_confidence P                of pseudo labels, in [0, 1]\n"
    ),
}
TOP_LEVEL = (
    "help", "help_all", "config", "print_config", "seed_everything", "trainer", "model", "data", "optimizer",
    "lr_scheduler", "predictions", "gates", "embeddings", "pseudo_labels", "min_confidence", "checkpoint", "monitor",
    "patience", "study", "offline", "overwrite", "ckpt_path", "weights_only", "verbose", "return_predictions",
)  # fmt: skip
GROUPS = {
    "trainer": ("pytorch_lightning", "trainer/trainer.py", "Trainer"),
    "data": ("mmemo", "data/datamodule.py", "EmotionDataModule"),
}
SYSTEMS = {
    "EmotionSystem": ("training/system.py", "EmotionSystem"),
    "DistillationSystem": ("training/distillation.py", "DistillationSystem"),
}


def fit(*options: Options) -> int:
    """Trains a model."""
    return _run("fit", options)


def validate(*options: Options) -> int:
    """Evaluates a model on the validation rows."""
    return _run("validate", options)


def test(*options: Options) -> int:
    """Evaluates a model on the test rows."""
    return _run("test", options)


def predict(*options: Options) -> int:
    """Writes the probabilities of every class, one row per utterance."""
    return _run("predict", options)


def _run(verb: str, options: tuple[str, ...]) -> int:
    if {"--help", "-h"} & set(options):
        print(HELP.format(verb=verb, summary=SUMMARIES[verb], own=OWN_OPTIONS.get(verb, "").rstrip("\n")))
        return 0
    words = ["--help" if word == "--help_all" else word for word in options]
    check_option_names(verb, words)
    if not any(word.split("=")[0] in ("--config", "-c", "--help", "--print_config") for word in words):
        config = next((word for word in words if word.endswith((".yaml", ".yml"))), "configs/demo.yaml")
        raise ValueError(f"name the YAML of an experiment: `mmemo {verb} --config {config}`")
    from mmemo.training.experiment_cli import ExperimentCLI

    command = ExperimentCLI([verb, *words])
    if verb == "fit":
        print_next_step(command.trainer.checkpoint_callbacks, command.trainer.default_root_dir)
    return 0


def print_next_step(checkpoints: list[Any], folder: str) -> None:
    """Prints where a trained model is, how good its best epoch was, and which command evaluates it."""
    scored = [callback for callback in checkpoints if callback.monitor and callback.best_model_score is not None]
    score = f", best {scored[0].monitor} {float(scored[0].best_model_score):.3f}" if scored else ""
    print(f"{folder}: trained{score}; next: `mmemo test` and `mmemo predict` with the same --config")


def check_option_names(verb: str, words: list[str]) -> None:
    """Checks the names of options without importing PyTorch; jsonargparse checks their values later.

    Args:
        verb: Verb for the error message.
        words: Command line after the verb.

    Raises:
        SystemExit: With code 2, for an option that does not exist.
    """
    for word in words:
        if not word.startswith("--"):
            continue
        name = word[2:].split("=")[0].rstrip("+")
        head, _, rest = name.partition(".")
        known = list(TOP_LEVEL)
        if name.startswith("model.init_args.") and (file := SYSTEMS.get(_system_class(words))):
            head, rest = "model.init_args", rest.removeprefix("init_args.")
            known = [f"{head}.{parameter}" for parameter in constructor_parameters("mmemo", *file)]
            name = f"{head}.{rest.split('.')[0]}"
        elif head in GROUPS and rest:
            known = [f"{head}.{parameter}" for parameter in constructor_parameters(*GROUPS[head])]
            name = f"{head}.{rest.split('.')[0]}"
        elif rest:
            name = head
        if name not in known:
            reject_option(verb, f"--{name}", [f"--{option}" for option in known])


def _system_class(words: list[str]) -> str:
    """Returns the name of the system's class in the YAML of the command line; empty if it is unknown."""
    import yaml

    files = [words[index + 1] for index, word in enumerate(words[:-1]) if word in ("--config", "-c")]
    files += [word.partition("=")[2] for word in words if word.startswith("--config=")]
    if len(files) != 1 or any(word.startswith("--model") and "init_args" not in word for word in words):
        return ""
    try:
        settings = yaml.safe_load(Path(files[0]).read_text())
        class_path = settings["model"]["class_path"]
    except (OSError, ValueError, yaml.YAMLError, TypeError, KeyError):
        return ""  # LightningCLI reports what is wrong with the file
    return str(class_path).rpartition(".")[2] if str(class_path).startswith("mmemo.") else ""


def constructor_parameters(package: str, file: str, name: str) -> list[str]:
    """Returns the names of a constructor's parameters from its source, without importing it.

    Args:
        package: Installed package.
        file: File in it.
        name: Class in the file.
    """
    spec = find_spec(package)
    assert spec is not None
    assert spec.origin is not None
    tree = ast.parse((Path(spec.origin).parent / file).read_text())
    cls = next(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name)
    init = next(node for node in cls.body if isinstance(node, ast.FunctionDef) and node.name == "__init__")
    return [argument.arg for argument in (*init.args.args, *init.args.kwonlyargs) if argument.arg != "self"]
